#!/usr/bin/env bash
# Usage: ./launch/passkey_smoke.sh [--dry_run] [--config=FILE] [--config.KEY=VALUE ...]
#            [--keys=N] [--filler=N] [--readings=N]
#
# Does a memory know a pass key that is no longer in its context? Trains FILE (configs/passkey_smoke.py) from
# 5 seeds into runs/passkey_smoke/seed_<S>, anew each time. Then hope_jax.evals.passkey_smoke measures the
# key's negative log-likelihood with memorization, without, and after control texts, into passkey_smoke.json
# beside them: exit 1 unless the gain over the controls is above zero. The other options are those of that
# command; docs/evals/passkey_smoke.md has the figures. Meant for CPUs; there was no GPU to try it on.
#
# --dry_run: print the commands instead.
# OUT: another folder for all. SEEDS: the runs' train.seed (1 2 3 4 5).
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out="${OUT:-runs/passkey_smoke}"
config=(--config=configs/passkey_smoke.py) settings=() options=()
for argument in "$@"; do
    case "$argument" in
        --config=*) config=("$argument") ;;
        --config.*) settings+=("$argument") ;;
        *) options+=("$argument") ;;
    esac
done

set_up requirements/cpu.txt ""
runs=""
for seed in ${SEEDS:-1 2 3 4 5}; do
    workdir="$out/seed_$seed"
    run rm -rf "$workdir"
    run python -m hope_jax.launch "${config[@]}" "${settings[@]+"${settings[@]}"}" \
        "--config.train.seed=$seed" "--workdir=$workdir"
    runs+="${runs:+,}$workdir"
done
run python -m hope_jax.evals.passkey_smoke "--checkpoints=$runs" "--out=$out/passkey_smoke.json" \
    "${options[@]+"${options[@]}"}"
