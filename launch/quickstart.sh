#!/usr/bin/env bash
# Usage: ./launch/quickstart.sh [--config.KEY=VALUE ...]
#
# Sets up .venv with the pinned CPU packages (no torch) and trains configs/pilot_smoke.py on the embedded
# corpus into runs/pilot_smoke; run again, it goes on from the last checkpoint. The last line of stdout is
# a JSON object with eval_loss, unigram_entropy, tokens_per_sec and train_seconds.
#
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

case "${1:-}" in -h | --help) sed -n '2,/^$/{s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up requirements/cpu.txt ""
exec python -m hope_jax.launch --config=configs/pilot_smoke.py --workdir=runs/pilot_smoke "$@"
