#!/usr/bin/env bash
# Usage: ./launch/long_run.sh [--dry_run] [--foreground] --config=FILE [--config.KEY=VALUE ...]
#                             [--workdir=DIR]
#
# Trains FILE in a tmux session that outlives the terminal, and starts it again from the last checkpoint when
# it fails, until the run's end. It gives up after a wrong configuration (exit 2), after RETRIES failures in
# a row that brought no new checkpoint, after an alarm (eval.alarm=stop), and where the run was stopped by a
# signal (python's exit 0). The session has the name of the workdir's folder; the log is DIR/long_run.log. Its
# loop is tested with a stand-in for the run; no long run, and none on a GPU, has been made: there was no GPU.
#
# --dry_run: print the commands instead. --foreground: here, without tmux.
# EXTRA: of the package ([cuda12] on GPUs; none). RETRIES: 3. PAUSE: seconds before a new start (10).
# PYTHON: the interpreter to use (python3). VENV: the environment's folder (.venv).

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

foreground=
if take --foreground; then foreground=1; fi
set -- "${arguments[@]+"${arguments[@]}"}"
config=''
workdir=''
for argument in "$@"; do
    case "$argument" in
        --config=*) config="${argument#--config=}" ;;
        --workdir=*) workdir="${argument#--workdir=}" ;;
    esac
done
if [ -z "$config" ]; then
    echo "error: --config=FILE is missing (--help)" >&2
    exit 2
fi
if [ -z "$workdir" ]; then
    # as launch names it: FILE.py:NAME=VALUE,... is a run of its own
    workdir="runs/$(basename "$config" | sed 's/\.py$//; s/\.py:/-/; s/,/-/g')"
    set -- "$@" "--workdir=$workdir"
fi
session=$(basename "$workdir" | tr -c '[:alnum:]\n' _)

# newest: the step of the last sealed checkpoint; nothing without one.
newest() {
    if [ -d "$workdir/checkpoints" ]; then
        find "$workdir/checkpoints" -maxdepth 1 -name '*.sha256' |
            sed 's/.*\///; s/\.sha256$//' | sort -n | tail -n 1
    fi
}

# loop COMMAND...: runs it until it ends well, or nothing is to be hoped for.
loop() {
    local failures=0 before code
    while :; do
        before=$(newest)
        code=0
        "$@" || code=$?
        if [ "$code" = 0 ]; then return 0; fi
        if [ "$code" = 2 ]; then return 2; fi
        if [ -e "$workdir/alarm.txt" ]; then
            echo "long_run.sh: exit $code, an alarm; $workdir/alarm.txt says which and what to do" >&2
            return "$code"
        fi
        failures=$((failures + 1))
        if [ "$(newest)" != "$before" ]; then failures=0; fi
        if [ "$failures" -ge "${RETRIES:-3}" ]; then
            echo "long_run.sh: exit $code, $failures times without a new checkpoint; given up" >&2
            return "$code"
        fi
        echo "long_run.sh: exit $code; starting again, from checkpoint $(newest) on, in ${PAUSE:-10} s" >&2
        sleep "${PAUSE:-10}"
    done
}

if [ -z "$foreground" ]; then
    if [ -z "$dry_run" ]; then
        if ! command -v tmux >/dev/null; then
            echo "error: tmux is not installed; install it, or use --foreground" >&2
            exit 2
        fi
        if tmux has-session -t "=$session" 2>/dev/null; then
            echo "error: the session $session exists; tmux attach -t $session shows it" >&2
            exit 2
        fi
        mkdir -p "$workdir"
    fi
    again=$(printf '%q ' "$PWD/launch/long_run.sh" --foreground "$@")
    run tmux new-session -d -s "$session" "$again 2>&1 | tee -ia $(printf %q "$workdir/long_run.log")"
    echo "# tmux attach -t $session shows the run; tmux send-keys -t $session C-c stops it with a checkpoint"
    exit 0
fi
set_up requirements/cpu.txt "${EXTRA:-}"
if [ -n "$dry_run" ]; then
    run python -m hope_jax.launch "$@"
    exit 0
fi
loop python -m hope_jax.launch "$@"
