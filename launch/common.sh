# Sourced by the scripts beside it: the repository's folder, a Python that is new enough, the environment,
# and dry runs, under which nothing is done: dry_run=1 is set where the first argument is --dry_run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=
if [ "${1:-}" = --dry_run ]; then dry_run=1; fi

# run COMMAND...: runs it; prints it in a dry run.
run() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@" | sed 's/ $/\n/'
    else
        "$@"
    fi
}

# set_up CONSTRAINTS EXTRAS: makes or reuses $VENV (.venv) and installs this package into it, editable.
# All chatter goes to stderr.
set_up() {
    local venv="${VENV:-.venv}" python="${PYTHON:-python3}" wanted installed
    if [ -n "$dry_run" ]; then
        echo "# $venv: made or reused, with this package$2 and the versions of $1"
        return
    fi
    if ! command -v "$python" >/dev/null; then
        echo "error: $python not found; set PYTHON to a Python 3.11 or newer" >&2
        exit 2
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $("$python" --version) is too old; set PYTHON to a Python 3.11 or newer" >&2
        exit 2
    fi
    wanted=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
    installed=$("$venv/bin/python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null || true)
    if [ "$installed" != "$wanted" ]; then
        if [ -e "$venv" ]; then echo "remaking $venv, which is not of Python $wanted" >&2; fi
        "$python" -m venv --clear "$venv" >&2
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$1" -e ".$2" >&2
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
}
