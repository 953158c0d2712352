# Sourced by the scripts beside it: the repository's folder, a Python that is new enough, the environment,
# and what all of them take, wherever it stands: --help, which prints the script's head, and --dry_run,
# under which nothing is done (dry_run=1). The other arguments are $@ again.
set -euo pipefail

arguments=("$@")

# take FLAG: whether it is among the arguments; it is taken out of them.
take() {
    local kept=() found=1 argument
    for argument in "${arguments[@]+"${arguments[@]}"}"; do
        if [ "$argument" = "$1" ]; then found=0; else kept+=("$argument"); fi
    done
    arguments=("${kept[@]+"${kept[@]}"}")
    return "$found"
}

if take -h || take --help; then
    sed -n '/^# Usage/,/^$/{s/^# \{0,1\}//;p}' "${script:-$0}"
    exit 0
fi
dry_run=
if take --dry_run || take --dry-run; then dry_run=1; fi
set -- "${arguments[@]+"${arguments[@]}"}"

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# from_caller PATH: the path as seen from here of one that was written in the caller's folder. An empty one
# stays empty, to be refused.
from_caller() {
    if [ -z "$1" ] || [ "${1#/}" != "$1" ] || [ "$caller" -ef . ]; then
        echo "$1"
    else
        echo "${caller%/}/$1"
    fi
}

# paths_from_caller LIST: the same of paths with commas between. Commas may stand in their names too: the
# longest part of the list that is there is a path, as in hope_jax/core/paths.py.
paths_from_caller() {
    local rest=$1 path found=''
    while :; do
        path=$rest
        while [ ! -e "$(from_caller "$path")" ] && [ "${path%,*}" != "$path" ]; do path=${path%,*}; done
        found+=$(from_caller "$path")
        if [ "$path" = "$rest" ]; then break; fi
        rest=${rest#"$path",} found+=,
    done
    echo "$found"
}

# run COMMAND...: runs it; prints it in a dry run.
run() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@" | sed 's/ $/\n/'
    else
        "$@"
    fi
}

# set_up CONSTRAINTS EXTRAS: makes or reuses $VENV (.venv) and installs this package into it, editable;
# without constraints in the newest versions. All chatter goes to stderr.
set_up() {
    local venv="${VENV:-.venv}" python="${PYTHON:-python3}" wanted installed
    if [ -n "$dry_run" ]; then
        echo "# $venv: made or reused, with this package$2 and the versions of ${1:-today}"
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
    local which=(--upgrade --upgrade-strategy eager)
    if [ -n "$1" ]; then which=(-c "$1"); fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${which[@]}" -e ".$2" >&2
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
}
