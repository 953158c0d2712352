#!/usr/bin/env bash
# Usage: ./launch/quickstart.sh [--config.KEY=VALUE ...]
#
# Sets up .venv with the pinned CPU packages (no torch) and trains configs/pilot_smoke.py on the embedded
# corpus into runs/pilot_smoke; run again, it goes on from the last checkpoint. The last line of stdout is
# a JSON object with eval_loss, unigram_entropy, tokens_per_sec, train_seconds, eval_loss_no_writes and
# periods_written.
#
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up requirements/cpu.txt ""
run exec python -m hope_jax.launch --config=configs/pilot_smoke.py --workdir=runs/pilot_smoke "$@"
