#!/usr/bin/env bash
# Runs a command once per task of a Slurm job, and queues the job again when it leaves with status 75: saved, start the
# same command again. Any other status ends it. MOST_RESTARTS (default 200) bounds a job that never gets anywhere.
#
# The tasks are started by srun, one per GPU, and not by a launcher: srun hands the signal to each of them and returns
# the highest of their statuses, where torchrun and accelerate launch would make 1 of it.
set -uo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch one-node.sbatch COMMAND ..." >&2; exit 2; }

export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

trap : TERM   # of a preempted job: the tasks have it too, and this shell must outlive them
srun --kill-on-bad-exit=0 bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
  exec "$@"
' task "$@"
status=$?

restarts=${SLURM_RESTART_COUNT:-0}
if [ $status -eq 75 ] && [ "$restarts" -lt "${MOST_RESTARTS:-200}" ]; then
  echo "status 75: job $SLURM_JOB_ID is queued again (restart $((restarts + 1)))"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
