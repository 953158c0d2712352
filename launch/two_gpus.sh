#!/usr/bin/env bash
# Usage: ./launch/two_gpus.sh [--dry_run] --config=FILE [--config.KEY=VALUE ...] [--workdir=DIR]
#
# Sets up .venv with JAX for CUDA 12 and trains FILE on two GPUs of this host: one process, the batch split
# over both. Run again, it goes on from the last checkpoint. Not run by us: there was no GPU.
#
# --dry_run: print the commands instead.
# GPUS: which two (0,1). PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus="${GPUS:-0,1}"
if ! [[ "$gpus" =~ ^[^,]+,[^,]+$ ]]; then
    echo "error: GPUS=$gpus; want two of them, for example GPUS=0,1" >&2
    exit 2
fi
set_up requirements/cpu.txt "[cuda12]"
check='import jax, sys
found = jax.devices()
if len(found) != 2 or found[0].platform != "gpu":
    sys.exit(f"error: want two GPUs, JAX finds {found}; nvidia-smi lists them, GPUS chooses")'
run env CUDA_VISIBLE_DEVICES="$gpus" python -c "$check"
run exec env CUDA_VISIBLE_DEVICES="$gpus" python -m hope_jax.launch "$@"
