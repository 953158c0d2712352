#!/usr/bin/env bash
# Usage: ./launch/cpu_dp_smoke.sh [--dry_run] [--processes] [--config=FILE] [--config.KEY=VALUE ...]
#
# Is data-parallel training deterministic? Trains FILE (configs/pilot_smoke.py, 20 steps) twice from scratch
# on two CPU devices, into runs/cpu_dp_smoke/first and second, and compares their digests: exit 1 where they
# differ. The two devices are those of one process, or with --processes one each of two. Whether two GPUs
# are as deterministic has not been tried by us: there was no GPU.
#
# --dry_run: print the commands instead.
# OUT: another folder for both runs. PORT: where the two processes meet (29476).
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=
if take --processes; then processes=1; fi
set -- "${arguments[@]+"${arguments[@]}"}"
out="${OUT:-runs/cpu_dp_smoke}"
settings=(--config.train.steps=20 --config.optim.warmup_steps=4 --config.eval.batches=2)
case " $*" in
    *" --config="*) settings=() ;;
    *) set -- --config=configs/pilot_smoke.py "$@" ;;
esac

# train DIR ARGUMENTS: one run. Both processes get the same arguments but for their number.
train() {
    local workdir="$1" join
    shift
    local command=(python -m hope_jax.launch "$@" "${settings[@]}" "--workdir=$workdir")
    if [ -z "$processes" ]; then
        run env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 "${command[@]}"
        return
    fi
    join=("--coordinator=127.0.0.1:${PORT:-29476}" --num_processes=2)
    if [ -n "$dry_run" ]; then
        run env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 "${command[@]}" "${join[@]}" --process_id=1
        run env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 "${command[@]}" "${join[@]}" --process_id=0
        return
    fi
    env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 "${command[@]}" "${join[@]}" --process_id=1 &
    local other=$! code=0
    env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 "${command[@]}" "${join[@]}" --process_id=0 || code=$?
    wait "$other" || code=$?
    return "$code"
}

set_up requirements/cpu.txt ""
run rm -rf "$out/first" "$out/second"
train "$out/first" "$@"
train "$out/second" "$@"
if [ -n "$dry_run" ]; then
    run python -m hope_jax.digest "$out/first"
    run python -m hope_jax.digest "$out/second"
    exit 0
fi
first=$(python -m hope_jax.digest "$out/first")
second=$(python -m hope_jax.digest "$out/second")
if [ "$first" != "$second" ]; then
    echo "error: the same run gave $first and $second (python -m hope_jax.digest $out/first, $out/second)" >&2
    exit 1
fi
echo "deterministic: $first"
