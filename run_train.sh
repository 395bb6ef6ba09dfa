#!/usr/bin/env bash
#SBATCH --job-name=rdrop
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rdrop-%j.log
#
# Train a recipe. Start it from the project root: relative paths are taken from there.
#
#     bash run_train.sh [RECIPE] [--option value ...]     without RECIPE the default one
#     bash run_train.sh --study digits              many runs: arms x seeds (see reproduce/study.py)
#     bash run_train.sh --gpu_check                 two minutes that say whether this GPU computes right
#     bash run_train.sh --help                      recipes and options
#
# All GPUs that are visible, one process each, or one process on the CPU. NPROC=2 takes two of the GPUs, or two
# processes on the CPU. `sbatch run_train.sh RECIPE` and several nodes: see docs/cluster.md.
#
# The first start makes .venv (see setup_env.sh). A run that was stopped continues when the same command is
# given again. Its records are in logs/, its weights in checkpoints/; bash run_board.sh shows the curves.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # it was started with sh
set +o posix -euo pipefail
root=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
if [[ ! -e $root/launch.sh ]]; then # sbatch runs a copy of this script from elsewhere
  root=${SLURM_SUBMIT_DIR:-}
  export RDROP_SBATCH=1
fi
if [[ ! -e $root/launch.sh ]]; then
  echo "run_train: submit from the project's root: cd PROJECT && sbatch run_train.sh" >&2
  exit 2
fi
cd "$root"
module=reproduce.train
if [[ ${1:-} == --study || ${1:-} == --gpu_check ]]; then
  module=reproduce.${1#--}
  shift
fi
source ./launch.sh run_train.sh "$module" "$@"
