"""Files are cut into records at a bounded memory, and half an archive is never taken for a whole one."""

import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from hope_jax.core.errors import DataError
from hope_jax.data.building import readers

TEXT = b"".join(b"line %d\n" % i for i in range(50_000))


def packed(path: Path) -> bytes:
    if path.suffix == ".gz":
        return gzip.compress(TEXT)
    if path.suffix == ".zst":  # two frames, as of files that were joined
        middle = len(TEXT) // 2
        packer = zstandard.ZstdCompressor(write_checksum=True)  # as the zstd tool does
        return b"".join(packer.compress(part) for part in (TEXT[:middle], TEXT[middle:]))
    return TEXT


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_a_file_is_unpacked_by_its_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(path))
    assert b"".join(readers.chunks(path)) == TEXT


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "other", "empty"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    whole = packed(path)
    middle = len(whole) // 2 + 100
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path.write_bytes(
        {"cut": whole[: middle + 500], "flip": flipped, "other": b"no archive", "empty": b""}[damage]
    )
    with pytest.raises(DataError, match=f"{name}: the archive is truncated or damaged .* fetch it again"):
        for _ in readers.chunks(path):
            pass


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_do_not_depend_on_how_bytes_come(size: int) -> None:
    raw = b"ab\n\nabcdef\r\ntoo long for it\nxyz"
    parts = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert list(readers.lines(parts, 7)) == [b"ab", b"", b"abcdef", None, b"xyz"]


@pytest.mark.parametrize(
    ("raw", "separated", "wanted"),
    [
        (b"one\ntwo\n\f\nthree\n", True, [b"one\ntwo", b"three"]),
        (b"\f\none\n\f\n\f\n \n\f\ntwo\n", True, [b"one", b"two"]),
        (b"one\r\n\f\r\ntwo\r\n", True, [b"one", b"two"]),
        (b"one\n\f\ntwo\n", False, [b"one\n\f\ntwo"]),
        (b"a\fb\n", True, [b"a\fb"]),
        (b"\n \n", True, []),
        (b"", False, []),
        (b"123456789\n123456789\n\f\nshort", True, [None, b"short"]),
        (b"a\n" * 40, False, [None]),
        (b"one line that is too long\n\f\nshort", True, [None, b"short"]),
    ],
)
def test_documents_of_a_text_file(raw: bytes, separated: bool, wanted: list[bytes | None]) -> None:
    assert list(readers.texts([raw], 12, separated)) == wanted


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_an_archive_of_little_is_unpacked_in_bounded_pieces(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / ("a.gz" if pack is gzip.compress else "a.zst")
    path.write_bytes(pack(bytes(2**27)))
    sizes = [len(part) for part in readers.chunks(path)]
    assert sum(sizes) == 2**27 and max(sizes) <= 8 * 2**20


def test_a_line_of_100_megabytes_is_not_held() -> None:
    def parts() -> Iterator[bytes]:
        yield b"first\n"
        for _ in range(100):
            yield b"x" * 2**20
        yield b"\nlast\n"

    tracemalloc.start()
    found = list(readers.lines(parts(), 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b"first", None, b"last"]
    assert peak < 8 * 2**20
