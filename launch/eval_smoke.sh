#!/usr/bin/env bash
# Usage: ./launch/eval_smoke.sh [--dry_run] [--checkpoint=PATH] [FLAGS OF hope_jax.evals.suite]
#
# One checkpoint through all evaluations, with few items and short contexts: every way is walked, no figure
# means anything. The checkpoint is that of runs/pilot_smoke, which is trained if it is not there (4 minutes).
# Results and report.html are put into runs/eval_smoke. Flags of the suite that are given here count.
#
# Data sets that may not be kept here (zero-shot tasks, intents) are made up, a few items of each in their
# schema; --zeroshot_data=FOLDER and --intents=FOLDER take the real ones. Paths in flags are
# those of the caller's folder.
#
# --dry_run: print the commands instead. OUT: another folder than runs/eval_smoke, removed first.
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

checkpoint=runs/pilot_smoke out="${OUT:-runs/eval_smoke}" settings=() note=(--option=zeroshot_note=made-up)
for argument in "$@"; do
    case "$argument" in
        --checkpoint=*) checkpoint=$(paths_from_caller "${argument#*=}") ;;
        --zeroshot_data=* | --intents=* | --documents=* | --segments=* | --baseline=*)
            settings+=("${argument%%=*}=$(from_caller "${argument#*=}")")
            if [ "${argument%%=*}" = --zeroshot_data ]; then note=(); fi
            ;;
        *) settings+=("$argument") ;;
    esac
done

set_up requirements/dev.txt "[eval]"
run rm -rf "$out"
if [ "$checkpoint" = runs/pilot_smoke ] && [ ! -f "$checkpoint/summary.json" ]; then
    run python -m hope_jax.launch --config=configs/pilot_smoke.py "--workdir=$checkpoint"
fi
run python -c 'import pathlib, sys
from tests.evals.tasks.intents_data import write_clinc
from tests.evals.tasks.zeroshot_files import write_files
folder = pathlib.Path(sys.argv[1])
write_files(folder)
write_clinc(folder)' "$out/made_up"
run python -m hope_jax.evals.suite "--checkpoint=$checkpoint" "--out=$out" --memorize --limit=2 \
    --lengths=1024 --niah_tasks=niah_single_1,niah_multikey_1 --option=perplexity_tokens=512 \
    "--zeroshot_data=$out/made_up" "${note[@]+"${note[@]}"}" "--intents=$out/made_up" \
    "${settings[@]+"${settings[@]}"}"
run test -s "$out/report.html"
