#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --array=0-2%3
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:8
#SBATCH --job-name=tttlrm-table2
#SBATCH --mem=983040M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/results/slurm/logs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240

# setup
export PYTHONPATH=REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
module load cuda/12.8
export NCCL_SOCKET_IFNAME=ib0

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /results/slurm/logs/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=12 PYTHON -u -m submitit.core._submit /results/slurm/logs


# teardown
status=$?
if [ -e /results/slurm/logs/requeue-$SLURM_JOB_ID ]; then rm -f /results/slurm/logs/requeue-$SLURM_JOB_ID; scontrol requeue "$SLURM_JOB_ID"; fi
exit $status