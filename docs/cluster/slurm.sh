#!/bin/bash
# Workers for a study, eight at a time. The study has begun already, and SUBNET_SEARCH_STORAGE holds its storage's URL:
#
#   sbatch docs/cluster/slurm.sh quickstart
#
# Before its time is up a worker writes a checkpoint and ends; the next task of the array goes on with the trial, and a
# task that finds the study finished ends at once. One that is preempted, or loses its node, is queued again by SLURM.
#SBATCH --job-name=subnet-search
#SBATCH --array=0-39%8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --output=slurm-%A_%a.log
#SBATCH --open-mode=append
##SBATCH --gpus-per-task=1
set -eu

: "${1:?which study?}" "${SUBNET_SEARCH_STORAGE:?the URL of the storage}"

# SLURM sends the signal to what srun runs, not to this script.
srun subnet-search study worker "$1" --wait 600  # for a storage that is away for a while
