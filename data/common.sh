# Sourced by the scripts beside it: help and the repository's folder as for launch/, and the build.
# shellcheck source=../launch/common.sh
script="$0"
. "$(dirname "${BASH_SOURCE[0]}")/../launch/common.sh"

# build MANIFEST FLAGS...: builds a mixture; in a dry run says what would be built.
build() {
    local python=python3 manifest="$1"
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
    shift
    python="${PYTHON:-$python}"
    if ! command -v "$python" >/dev/null; then
        echo "error: $python not found; set PYTHON to a Python with pip install 'hope_jax[data]'" >&2
        exit 2
    fi
    exec "$python" -m hope_jax.data.build --manifest="$manifest" ${dry_run:+--dry_run} "$@"
}
