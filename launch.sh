# shellcheck shell=bash
# What run_train.sh and run_eval.sh share: the environment, and one or several processes. Sourced from the project
# root as `source ./launch.sh SCRIPT MODULE "$@"`. See run_train.sh on devices.
script=$1 module=$2
shift 2
source ./setup_env.sh run

# SLURM starts the script on the first node of the job; this has it on all of them, told who they are.
if ((${SLURM_JOB_NUM_NODES:-1} > 1)) && [[ -z ${NNODES:-} ]]; then
  if [[ -z ${RDROP_ON_EACH_NODE:-} ]]; then
    export RDROP_ON_EACH_NODE=1 PYTHON
    exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash "$script" "$@"
  fi
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export NNODES=$SLURM_JOB_NUM_NODES NODE_RANK=$SLURM_NODEID
  export MASTER=$first:$((20000 + SLURM_JOB_ID % 20000))
fi

if [[ -n ${NPROC:-}${NNODES:-} ]] || nvidia-smi -L >/dev/null 2>&1; then
  exec "$PYTHON" -m reproduce.launch "$module" "$@"
fi
exec "$PYTHON" -m "$module" "$@"
