#!/usr/bin/env bash
# Usage: ./launch/gpu_check.sh [--dry_run] [--small] [--again] [PART ...]
#
# Checks this machine's GPU, or other device, with python -m hope_jax.device_check: the CPU's numbers within
# tolerances, two GPUs against one, tokens/s of the pilot in its modes and of larger models beside the plan's
# bounds, memory, PyTorch beside it where that is installed. Leaves device_check.json and report.html in
# runs/gpu_check. Each PART (all) is a process of at most ten minutes; run again, it goes on with the parts
# that have no result. Written without a GPU: none of it has run on one.
#
# --dry_run: print the commands instead. --small: a few parts at toy sizes on two CPU devices.
# --again: also parts that have a result.
# CUDA: 12 or 13 (12). HERE: non-empty: use PYTHON as it is, with the packages that it has.
# OUT: another folder. LIMIT: seconds of a part (600).
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv-gpu; --small: .venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flags=() extra="[cuda${CUDA:-12}]" folder=.venv-gpu
if take --small; then
    flags+=(--small) extra='' folder=.venv
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2
    # Each program runs a few times: better code would take longer to make than it saves.
    export XLA_FLAGS="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
fi
if take --again; then flags+=(--again); fi
set -- "${arguments[@]+"${arguments[@]}"}"
PYTHON="${PYTHON:-python3}" VENV="${VENV:-$folder}" out="${OUT:-runs/gpu_check}"
if [ -z "${HERE:-}" ]; then
    # The pinned versions come with CUDA 12, the newest also with 13.
    if [ "$extra" = "[cuda13]" ]; then set_up "" "$extra"; else set_up requirements/cpu.txt "$extra"; fi
    PYTHON=python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# The plan counts with 95 % of a GPU's memory; JAX takes 75 % unless told otherwise.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}"

command=("$PYTHON" -m hope_jax.device_check "--out=$out" "${flags[@]+"${flags[@]}"}")
if [ "$#" = 0 ] && [ -z "$dry_run" ]; then
    # shellcheck disable=SC2046
    set -- $("$PYTHON" -m hope_jax.device_check --list "${flags[@]+"${flags[@]}"}")
fi
failed=0
for part in "${@:-PART}"; do
    code=0
    run timeout "${LIMIT:-600}" "${command[@]}" "$part" || code=$?
    if [ "$code" = 2 ]; then exit 2; fi
    if [ "$code" = 124 ]; then echo "gpu_check.sh: $part: stopped after ${LIMIT:-600} s" >&2; fi
    if [ "$code" != 0 ]; then failed=1; fi
done
exit "$failed"
