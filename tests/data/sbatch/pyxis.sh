#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --job-name=tttlrm-table2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/results/slurm/logs/%A_%a_0_log.out
#SBATCH --partition=batch
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240

# setup
export PYTHONPATH=REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
unset TTTLRM_IMAGE_DIGEST
unset PYTHONPATH

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /results/slurm/logs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=16 --container-image=/shared/images/tttlrm-suite.sqsh --container-mounts=/shared:/shared /opt/venv/bin/python -u -m submitit.core._submit /results/slurm/logs


# teardown
status=$?
if [ -e /results/slurm/logs/requeue-$SLURM_JOB_ID ]; then rm -f /results/slurm/logs/requeue-$SLURM_JOB_ID; scontrol requeue "$SLURM_JOB_ID"; fi
exit $status