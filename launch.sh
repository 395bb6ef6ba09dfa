# shellcheck shell=bash
# What run_train.sh and run_eval.sh share: the environment, one or several processes, one or several nodes. Sourced
# from the project root as `source ./launch.sh SCRIPT MODULE "$@"`. See docs/cluster.md.
script=$1 module=$2
shift 2
source ./setup_env.sh run

for name in SLURM_JOB_NUM_NODES SLURM_JOB_ID SLURM_STEP_NUM_TASKS; do
  [[ ${!name:-1} =~ ^[0-9]+$ ]] || setup_fail "$name=${!name}: must be a whole number, as SLURM sets it"
done
if ((${SLURM_STEP_NUM_TASKS:-1} > 1)) && [[ -z ${RDROP_ON_EACH_NODE:-}${NNODES:-} ]]; then
  setup_fail "srun started this script $SLURM_STEP_NUM_TASKS times: give it to sbatch, which starts it once, and all" \
    "nodes and GPUs of the job are used"
fi
start=("$PYTHON" -m "$module")
if [[ $module == reproduce.study || $module == reproduce.gpu_check ]]; then
  : # these start their processes themselves
elif ((${SLURM_JOB_NUM_NODES:-1} > 1)) && [[ -z ${NNODES:-}${RDROP_ON_EACH_NODE:-} ]]; then
  # SLURM starts the script on the first node of the job; srun starts it on all of them. Since SLURM 22.05 it does not
  # inherit the cores of a task.
  start=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1)
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || start+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  start+=(env RDROP_ON_EACH_NODE=1 PYTHON="$PYTHON" bash "$script")
else
  if [[ -n ${RDROP_ON_EACH_NODE:-} ]]; then
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export NNODES=$SLURM_JOB_NUM_NODES NODE_RANK=$SLURM_NODEID MASTER=$first:$((20000 + SLURM_JOB_ID % 20000))
  fi
  if [[ -n ${NPROC:-}${NNODES:-} ]] || nvidia-smi -L >/dev/null 2>&1; then
    start=("$PYTHON" -m reproduce.launch "$module")
  fi
fi
if [[ -z ${RDROP_SBATCH:-} || -n ${RDROP_ON_EACH_NODE:-} ]]; then
  exec "${start[@]}" "$@"
fi

# The script of a SLURM job stays, to have a run that stopped for the time limit queued again.
child=
for signal in TERM USR1; do
  # shellcheck disable=SC2064
  trap "[[ -z \$child ]] || kill -$signal \"\$child\" 2>/dev/null || true" "$signal"
done
"${start[@]}" "$@" &
child=$!
while true; do
  code=0
  wait "$child" || code=$?
  kill -0 "$child" 2>/dev/null || break # a signal ends `wait` before the child has ended
done
if ((code == 138)); then # stopped by USR1
  if scontrol requeue "$SLURM_JOB_ID"; then
    setup_say "job $SLURM_JOB_ID is queued again and will continue the run"
  else
    setup_say "SLURM did not queue the job again: give the same sbatch command to continue the run"
  fi
fi
exit "$code"
