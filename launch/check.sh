#!/usr/bin/env bash
# Usage: ./launch/check.sh [--all] [PYTEST ARGUMENTS]
#
# Sets up .venv with everything the tests need (pinned CPU torch included), then lint, formatting, types,
# and the test suite; --all runs the cases marked nightly too, on programs compiled as users
# compile them. The last line is pytest's closing line.
#
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv). JOBS: test processes (2).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

select=()
if take --all; then
    select=(-m "nightly or not nightly")
    export XLA_FLAGS="--xla_backend_optimization_level=3 ${XLA_FLAGS:-}"
fi
set -- "${arguments[@]+"${arguments[@]}"}"
set_up requirements/dev.txt "[dev]"
run ruff check .
run ruff format --check .
run mypy
run exec python -m pytest -q -n "${JOBS:-2}" "${select[@]+"${select[@]}"}" "$@"
