#!/usr/bin/env bash
# Usage: ./launch/compile_check.sh [--dry_run] [NAME ...]
#
# Do all kernels, and steps with attention, compile for an RTX 6000 Ada (sm_89), an H100 (sm_90) and a TPU
# v5e? Compiles those whose names begin with NAME, or all, for each of the three, without the devices: nothing
# is run, and there was no GPU to run it on. Takes the 6 GB of JAX's compilers for CUDA 12 and TPUs. Prints a
# row for each (python -m hope_jax.compile_check); exit 1 where one does not compile. Not part of CI;
# docs/devices.md has the last result.
#
# --dry_run: print the commands instead.
# TOPOLOGIES: others than rtx6000ada:1 h100:1 v5e:2x2. HERE: non-empty: use PYTHON as it is.
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv-compile).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PYTHON="${PYTHON:-python3}" VENV="${VENV:-.venv-compile}"
if [ -z "${HERE:-}" ]; then
    set_up requirements/cpu.txt "[cuda12]"
    run python -m pip install --quiet --disable-pip-version-check -c requirements/cpu.txt "jax[tpu]"
    PYTHON=python
fi
failed=0
for topology in ${TOPOLOGIES:-rtx6000ada:1 h100:1 v5e:2x2}; do
    run env "PYTHONPATH=$PWD" "$PYTHON" -m hope_jax.compile_check "--topology=$topology" "$@" || failed=1
done
exit "$failed"
