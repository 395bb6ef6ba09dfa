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
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # it was started with sh
set +o posix -euo pipefail
root=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -e $root/launch.sh ]] || root=${SLURM_SUBMIT_DIR:-} # sbatch runs a copy of this script from elsewhere
if [[ ! -e $root/launch.sh ]]; then
  echo "run_eval: submit from the project's root: cd PROJECT && sbatch run_eval.sh" >&2
  exit 2
fi
cd "$root"
source ./launch.sh run_eval.sh reproduce.evaluate "$@"
