#!/usr/bin/env bash
# Trains the agent that `sb3-refine --demo` refines, with the Zoo's own tools and hyperparameters, stopped early
# (16,384 of 100,000 steps): it swings the pendulum up, slowly. Needs: pip install 'sb3-refine[hub]'
set -eu
cd "$(mktemp -d)"
python -m rl_zoo3.train --algo ppo --env Pendulum-v1 -n 16384 --seed 1 -f logs --eval-freq -1 --num-threads 1
rm -f logs/ppo/Pendulum-v1_1/*.csv
echo "trained agent: $PWD/logs (copied to sb3_refine/demo)"
