#!/usr/bin/env bash
# What the scripts of this folder share; they source it from the project's root.
set -euo pipefail
PYTHON="${PYTHON:-$(ls .venv/bin/python 2>/dev/null || echo python)}"  # the environment that env.sh built, if any
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# What torchrun passes on to the ranks. They then finish or give up a step, save and leave PREEMPTED in the output folder,
# for which torchrun gives them 30 seconds, or two minutes where a variable can say so: a slow disk may need more than 30
# for a large checkpoint. Older versions of torch read the first variable, newer ones the others.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SIGNALS_TO_HANDLE="$TORCHELASTIC_SIGNALS_TO_HANDLE"
export PET_SHUTDOWN_TIMEOUT=120
# Runs that torchrun restarts (--max_restarts) meet at a new place, where nothing of the lost run is left.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
