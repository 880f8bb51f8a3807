#!/bin/bash
# One refinement on four nodes of Slurm: sbatch docs/cluster/slurm.sh (needs ray 2.52 or newer)
#SBATCH --job-name=sb3-refine
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=02:00:00
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node; Ray itself uses 10001 to 19999

export RAY_AUTH_MODE=token # others on the same machines cannot use this Ray
ray get-auth-token --generate > /dev/null # into ~/.ray/auth_token, which all nodes have to see

# Starts Ray on all nodes, runs the command on the first one, and stops Ray. The time limit, in seconds, ends the search
# before Slurm ends the job. 64 pairs of candidates in each update keep 128 processors busy. If the job is killed,
# `sb3-refine --resume FOLDER --backend ray:address=auto` goes on.
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    sb3-refine --algo tqc --env Walker2DBulletEnv-v0 -f rl-trained-agents --backend ray:address=auto \
    --n-delta 64 --time-limit 6000
