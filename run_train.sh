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
#     bash run_train.sh                             the default recipe
#     bash run_train.sh RECIPE [--option value ...]
#     bash run_train.sh --study digits              many runs: arms x seeds (see reproduce/study.py)
#     bash run_train.sh --help                      recipes and options
#
# Devices: all GPUs that are visible, one process each, or one process on the CPU.
#
#     CUDA_VISIBLE_DEVICES=0 bash run_train.sh RECIPE     one GPU
#     bash run_train.sh RECIPE                            8 GPUs, where there are 8
#     NPROC=2 bash run_train.sh RECIPE                    two of the GPUs, or two processes on the CPU
#     NNODES=2 NODE_RANK=0 MASTER=10.0.0.1:29500 bash run_train.sh RECIPE      2 nodes x 8: this on the first,
#     NNODES=2 NODE_RANK=1 MASTER=10.0.0.1:29500 bash run_train.sh RECIPE      and this on the second
#     sbatch run_train.sh RECIPE                          SLURM: one GPU; five minutes before its time is over it is
#                                                         told, saves and stops
#     sbatch --nodes=2 --gpus-per-node=8 run_train.sh RECIPE      SLURM, 2 nodes x 8
#
# Several nodes need a file system that they share. What the run means does not depend on any of this.
#
# The first start makes .venv (see setup_env.sh). A run that was stopped continues when the same command is
# given again. Its records are in logs/, its weights in checkpoints/; bash run_board.sh shows the curves.
set -euo pipefail
root=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
if [[ -n ${SLURM_SUBMIT_DIR:-} && ! -e $root/launch.sh ]]; then
  root=$SLURM_SUBMIT_DIR # sbatch runs a copy of this script from elsewhere
  export RDROP_SBATCH=1
fi
cd "$root"
if [[ ${1:-} == --study ]]; then # it starts its runs itself
  source ./setup_env.sh run
  exec "$PYTHON" -m reproduce.study "${@:2}"
fi
source ./launch.sh run_train.sh reproduce.train "$@"
