#!/usr/bin/env bash
# Usage: ./launch/check.sh [--all] [PYTEST ARGUMENTS]
#
# Sets up .venv with everything the tests need (pinned CPU torch included), then lint, formatting, types,
# and the test suite; --all runs the cases marked nightly too. The last line is pytest's closing line.
#
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv). JOBS: test processes (2).

case "${1:-}" in -h | --help) sed -n '2,/^$/{s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

select=()
if [ "${1:-}" = --all ]; then
    shift
    select=(-m "nightly or not nightly")
fi
set_up requirements/dev.txt "[dev]"
ruff check .
ruff format --check .
mypy
exec python -m pytest -q -n "${JOBS:-2}" "${select[@]}" "$@"
