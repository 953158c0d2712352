#!/usr/bin/env bash
# Usage: ./data/run_full.sh [--dry_run] [FLAGS OF hope_jax.data.build]
#
# Builds the full mixture (data/mixtures/full.yaml) from Hugging Face datasets into data/shards/full and its
# statistics into data/mixtures/full.json. Run again, it skips what is done. docs/data.md says what it needs.
#
# RW_LIMIT, WIKI_LIMIT, C4_LIMIT, RPJ_LIMIT, CODE_LIMIT: documents of each source to pass on to its filters, in
#   plain decimal digits; those that its reader rejects (empty, too short, not UTF-8) do not count.
# RW_SPLIT, WIKI_SPLIT, C4_SPLIT, RPJ_SPLIT, CODE_SPLIT: the split to read (train).
# FALLBACK_SPLIT: the split to read, loudly, of a source that has no such split (train).
# TOKENIZER: sentencepiece model, a path from the repository's folder; has to be set.
# PYTHON: the interpreter, with pip install 'hope_jax[data]' (.venv/bin/python where it is there, else python3).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "${TOKENIZER:-embedded}" != embedded ]; then TOKENIZER=$(realpath -m "$TOKENIZER"); fi
export TOKENIZER="${TOKENIZER:-}"
build data/mixtures/full.yaml "$@"
