"""What commands print: it goes out whatever a terminal can show, and fails in two ways that are known.

A sign that the output's encoding lacks is replaced by a question mark. Whoever read the output may go away
(as `head` does): that ends a command quietly, with the exit code that a shell shows for it. A full disk is an
error as any other.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Raises: ClosedOutput, OutputError; what is left in the buffer is then dropped."""
    try:
        yield
    except OSError as error:
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise ClosedOutput("nobody reads the output any more") from None
        remedy = "make room, or send it elsewhere"
        raise OutputError(f"the output cannot be written ({error.strerror}); {remedy}") from None


def say(text: object = "", end: str = "\n") -> None:
    """Prints a result, at once. Raises: ClosedOutput, OutputError; what follows is then dropped."""
    with _printing():
        print(text, end=end, flush=True)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of a table: the first column begins on the left, the others end on the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    layout = "  ".join([f"{{:{first}}}", *(f"{{:>{width}}}" for width in widths)])
    return [layout.format(*row) for row in rows]


def finish() -> None:
    """Writes what libraries have left in the buffer. Raises: ClosedOutput, OutputError."""
    with _printing():
        sys.stdout.flush()


def complain(text: str) -> None:
    """Prints to stderr, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Sends what is in a stream's buffer nowhere: Python would try again when it ends, and fail."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
