#!/usr/bin/env bash
# Usage: ./data/run_sample.sh [--dry_run] [FLAGS OF hope_jax.data.build]
#
# Builds the sample mixture (data/mixtures/sample.yaml) into data/shards/sample and its statistics into
# data/mixtures/sample.json: real texts of the repository and of the interpreter as stand-ins for the five
# sources of the full mixture. Offline, under a minute on one core. Run again, it skips what is done.
#
# PYTHON: the interpreter, with pip install 'hope_jax[data]' (.venv/bin/python where it is there, else python3).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

export HF_HUB_OFFLINE=1
build data/mixtures/sample.yaml --workers=1 "$@"
