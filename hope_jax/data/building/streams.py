"""Bytes of plain, gzip and zstd files, cut into records at a bounded memory, whatever is in the file.

A record over the limit is not held: None stands for it. A compressed file that ends too early or is damaged
is an error that names the file; half of it is never taken for the whole.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from hope_jax.core.errors import DataError
from hope_jax.data import text_files

CHUNK = 1 << 20
_PACKED = 256
"""Bytes of a .zst file to unpack at once: four of them can stand for a block of 128 KiB, so this is 8 MiB."""

_LONGEST_MARK = 4
"""Bytes of a byte order mark."""

SEPARATOR = b"\f"
"""What a line between two documents of a text file holds."""


class OtherEncodingError(DataError):
    """A file begins with the byte order mark of UTF-16 or UTF-32."""


def chunks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file, by its suffix (.gz, .zst, else plain), from behind a byte order mark on.

    Raises: DataError: a damaged archive, a file that cannot be read; OtherEncodingError.
    """
    parts, head = _unpacked(path), b""
    while len(head) < _LONGEST_MARK and (part := next(parts, None)) is not None:
        head += part
    try:
        yield text_files.begin(head)
    except text_files.NotUtf8Error as error:
        raise OtherEncodingError(
            f"{path} {error}; convert it, for example with iconv, or take it out of the source"
        ) from None
    yield from parts


def _unpacked(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix in (".gz", ".zst") and not path.stat().st_size:
            raise EOFError("it has no bytes at all")  # which gzip takes for no text
        if path.suffix == ".zst":
            yield from _zstd_chunks(path)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from iter(lambda: file.read(CHUNK), b"")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: the archive is truncated or damaged ({error}); fetch it again, or take it out of the "
            "source"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # zstandard's own stream reader takes the end of a cut file for the end of its text.
    frame = None
    with path.open("rb") as file:
        while packed := file.read(_PACKED):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(packed)
                packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends within a frame")


def lines(parts: Iterable[bytes], limit: int) -> Iterator[bytes | None]:
    """Lines without their ends; None for one of more than `limit` bytes."""
    held, over = bytearray(), False
    for part in parts:
        *ended, rest = part.split(b"\n")
        for piece in ended:
            whole = bytes(held) + piece
            yield None if over or len(whole) > limit else whole.removesuffix(b"\r")
            held.clear()
            over = False
        over = over or len(held) + len(rest) > limit
        if over:
            held.clear()
        else:
            held += rest
    if held or over:
        yield None if over else bytes(held)


def texts(parts: Iterable[bytes], limit: int, separated: bool) -> Iterator[bytes | None]:
    """Documents of a text file: all of it, or what lies between lines that hold only a form feed; white space
    alone is no document. None for one of more than `limit` bytes."""
    held: list[bytes] = []
    size, over = 0, False
    for line in lines(parts, limit):
        if separated and line == SEPARATOR:
            yield from _document(held, over)
            held, size, over = [], 0, False
            continue
        if line is not None:
            size += len(line) + 1
        if over or line is None or size - 1 > limit:
            held, over = [], True
        else:
            held.append(line)
    yield from _document(held, over)


def _document(held: list[bytes], over: bool) -> Iterator[bytes | None]:
    if over:
        yield None
    elif (text := b"\n".join(held).strip(b"\r\n")) and text.strip():
        yield text
