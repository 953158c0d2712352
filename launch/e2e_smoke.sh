#!/usr/bin/env bash
# Usage: ./launch/e2e_smoke.sh [--dry_run] [--piqa=FILE] [--limit=N] [--config.KEY=VALUE ...]
#
# From raw text to a zero-shot figure: builds the sample mixture (data/run_sample.sh), trains
# configs/pilot_smoke.py on its shards (20 steps) into runs/e2e_smoke/run, and puts PIQA's accuracy, as
# lm-eval measures it, into runs/e2e_smoke/evals. After 20 steps the figure is that of a bad model.
#
# --piqa: PIQA's validation set in lm-eval's schema, JSON lines with goal, sol1, sol2, label (or PIQA_FILE);
#     the path is that of the caller's folder. Nothing is downloaded: without it three items are made up.
#     They are not PIQA, and the result says so.
# --limit: items at most (200). --dry_run: print the commands instead.
# OUT: another folder than runs/e2e_smoke; what stands in it from an earlier run is removed.
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

piqa="${PIQA_FILE:-}" limit=200 out="${OUT:-runs/e2e_smoke}" settings=()
for argument in "$@"; do
    case "$argument" in
        --piqa=)
            echo "error: --piqa= is empty; name a file, or leave the flag out for made-up items" >&2
            exit 2
            ;;
        --piqa=*) piqa="${argument#*=}" ;;
        --limit=*) limit="${argument#*=}" ;;
        *) settings+=("$argument") ;;
    esac
done
if [ -n "$piqa" ]; then
    given=$piqa piqa=$(from_caller "$piqa")
    if [ ! -f "$piqa" ]; then
        echo "error: --piqa=$given: no such file; want PIQA's validation set as JSON lines, or nothing" >&2
        exit 2
    fi
fi

note="made-up items, not PIQA" marked=()
if [ -n "$piqa" ]; then note=; else marked=("--option=zeroshot_note=$note"); fi
mixture="{'speeches': 0.4, 'jargon': 0.2, 'novel': 0.15, 'scripture': 0.15, 'code': 0.1}"

set_up requirements/dev.txt "[data,eval]"
run rm -rf "$out/run" "$out/piqa" "$out/evals"
run mkdir -p "$out/piqa"
run env PYTHON=python ./data/run_sample.sh
run python -m hope_jax.launch --config=configs/pilot_smoke.py "--workdir=$out/run" \
    --config.train.steps=20 --config.optim.warmup_steps=4 --config.eval.batches=2 \
    --config.data.source=data/shards/sample "--config.data.mixture=$mixture" \
    "${settings[@]+"${settings[@]}"}"
if [ -n "$piqa" ]; then
    run cp "$piqa" "$out/piqa/piqa_validation.jsonl"
else
    if [ -z "$dry_run" ]; then echo "WARNING: $note: without --piqa=FILE there are no others" >&2; fi
    run python -c 'import pathlib, sys; from tests.evals.tasks.zeroshot_files import write_files
write_files(pathlib.Path(sys.argv[1]), "piqa")' "$out/piqa"
fi
run python -m hope_jax.evals.suite "--checkpoint=$out/run" "--out=$out/evals" --only=zeroshot \
    --zeroshot_tasks=piqa "--zeroshot_data=$out/piqa" "--limit=$limit" "${marked[@]+"${marked[@]}"}"
run python -c 'import json, sys
found = json.load(open(sys.argv[1]))
piqa, note = found["metrics"]["piqa/acc/baseline"], found["settings"].get("note")
assert note == (sys.argv[2] or None), note
print(note or "PIQA", "accuracy", piqa["value"], "95 %", piqa["ci95"], "items", piqa["n"])
' "$out/evals/zeroshot.json" "$note"
