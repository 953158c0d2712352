"""What commands print: it goes out whatever a terminal can show, and fails in two ways that are known.

A sign that the output's encoding lacks is replaced by a question mark. Whoever read the output may go away
(as `head` does): that ends a command quietly, with the exit code that a shell shows for it. A full disk is an
error as any other.
"""

import contextlib
import io
import os
import sys
from typing import TextIO

from hope_jax.core.errors import ClosedOutput, OutputError


def prepare() -> None:
    """Before anything is opened or printed: standard streams that take every text, also where they are closed
    (their numbers would fall to other files, into which libraries would write their messages)."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(text: object = "", end: str = "\n") -> None:
    """Prints a result, at once. Raises: ClosedOutput, OutputError; what follows is then dropped."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        raise _lost(error) from None


def complain(text: str) -> None:
    """Prints to stderr, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def finish() -> None:
    """Writes what libraries have left in the buffer. Raises: ClosedOutput, OutputError."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _lost(error) from None


def _lost(error: OSError) -> ClosedOutput | OutputError:
    """The error to raise."""
    _drop(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return ClosedOutput("nobody reads the output any more")
    return OutputError(f"the output cannot be written ({error.strerror}); make room, or send it elsewhere")


def _drop(stream: TextIO) -> None:
    """Sends what is in a stream's buffer nowhere: Python would try again when it ends, and fail."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
