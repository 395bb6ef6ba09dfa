#!/usr/bin/env bash
# Evaluate weights: a checkpoint of run_train.sh, or a downloaded file. Start it from the project root:
# relative paths are taken from there.
#
#     bash run_eval.sh                              the digits weights that lie in checkpoints/
#     bash run_eval.sh WEIGHTS [--option value ...]
#     bash run_eval.sh --help                       options and file types
#
# Prints the accuracy, counted over exactly the images of the split, however many processes share them (all visible
# GPUs; NPROC, NNODES and SLURM as in run_train.sh). The first start makes .venv (see setup_env.sh).
set -euo pipefail
root=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
if [[ -n ${SLURM_SUBMIT_DIR:-} && ! -e $root/launch.sh ]]; then
  root=$SLURM_SUBMIT_DIR # sbatch runs a copy of this script from elsewhere
fi
cd "$root"
source ./launch.sh run_eval.sh reproduce.evaluate "$@"
