#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=1
#SBATCH --job-name=tttlrm-table2
#SBATCH --mem=4096M
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/results/slurm/logs/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
export PYTHONPATH=REPOSITORY${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /results/slurm/logs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=1 PYTHON -u -m submitit.core._submit /results/slurm/logs


# teardown
status=$?
if [ -e /results/slurm/logs/requeue-$SLURM_JOB_ID ]; then rm -f /results/slurm/logs/requeue-$SLURM_JOB_ID; scontrol requeue "$SLURM_JOB_ID"; fi
exit $status