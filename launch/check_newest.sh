#!/usr/bin/env bash
# Usage: ./launch/check_newest.sh [PYTEST ARGUMENTS]
#
# Tests of each kind, within ten minutes on two cores, under the newest Python and the newest versions that
# pyproject.toml allows: memories against their oracles, learning modes, streams, checkpoints, configurations,
# and a model trained from the command line. check.sh runs all tests, under the pinned versions.
#
# PYTHON: the interpreter (else the newest of 3.13 and 3.12 on PATH or of pyenv; without one nothing is done).
# VENV: the environment's folder (.venv-newest). JOBS: test processes (2).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

newest_python() {
    local version candidate
    for version in 3.13 3.12; do
        for candidate in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
            # pyenv has commands on PATH also for versions that are not switched on
            if "$candidate" -c 'import ensurepip' 2>/dev/null; then
                echo "$candidate"
                return
            fi
        done
    done
}

PYTHON="${PYTHON:-$(newest_python)}" VENV="${VENV:-.venv-newest}"
if [ -z "$PYTHON" ]; then
    echo "not run: there is no Python 3.12 or 3.13 here (PATH, pyenv); PYTHON names one elsewhere"
    exit 0
fi
set_up "" "[test]"
run python -c '
import platform
from importlib.metadata import version
print("Python", platform.python_version(), *(f"{n} {version(n)}" for n in ("jax", "flax", "optax", "numpy")))'
if [ -z "$dry_run" ]; then
    workdir=$(mktemp -d)
    trap 'rm -rf "$workdir"' EXIT
fi
run python -m hope_jax.launch --config=configs/pilot_smoke.py --workdir="${workdir:-WORKDIR}" \
    --config.train.steps=2 --config.optim.warmup_steps=0 --config.eval.batches=1 \
    --config.eval.generate_tokens=4
tests=(
    kernels/cms_write kernels/newton_schulz
    tests/config/test_config.py tests/config/test_check.py tests/config/test_shipped_files.py
    tests/memory/test_cms.py tests/memory/test_inner_optim.py tests/models/test_lm.py
    tests/learning/test_online.py tests/learning/test_stream.py tests/optim/test_outer.py
    tests/data/test_pipeline.py tests/data/test_mixture.py
    tests/training/test_step.py tests/storage/test_checkpoint.py tests/cluster/test_meeting.py
    tests/planning/test_counts.py
)
run python -m pytest -q -n "${JOBS:-2}" "${tests[@]}" "$@"
