"""Lists of files with their SHA-256, as `sha256sum` writes and checks them; read as if from hostile hands."""

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from hope_jax.core.errors import CheckpointError

logger = logging.getLogger("hope_jax.training")

TEXT_LIMIT = 64 * 2**20
"""Bytes of the largest text file (list, metadata, configuration) that is read at all."""

_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\\]+)")
_THREADS = 4
_QUIET_SECONDS = 5.0


class BadFileError(CheckpointError):
    """A file is not what its list says. path: the first such file."""

    def __init__(self, path: Path, problem: str, remedy: str = "restore it from a copy") -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path, self.problem = path, problem


def read_text(path: Path) -> str:
    """A small UTF-8 file.
    Raises: BadFileError: it is missing, no regular file, larger than `TEXT_LIMIT`, or not UTF-8."""
    size = _regular_size(path)
    if size > TEXT_LIMIT:
        raise BadFileError(path, f"is {size:,} bytes long, more than such a file ever is")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(path, f"cannot be read ({error})") from error


def read_metadata(path: Path, form: str, version: int, what: str) -> dict[str, Any]:
    """A JSON object that says of itself `format` and `version`. what: for the message.
    Raises: BadFileError: it cannot be read, or is of another format or version."""
    try:
        meta = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"is no JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != form:
        raise BadFileError(path, f"is no {what} (format {form!r} is missing)")
    found = meta.get("version")
    if type(found) is not int or found != version:  # True equals 1
        problem = f"has format version {found!r}, this program reads {version}"
        raise BadFileError(path, problem, "use the hope_jax that wrote it")
    return meta


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a regular file. Raises: BadFileError."""
    _regular_size(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})") from error


def hash_files(root: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of relative POSIX path and hex SHA-256, in the order given.
    Raises: BadFileError: the first bad one."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sha256") as pool:
        try:
            yield from zip(names, pool.map(hash_file, map(root.joinpath, names)), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def files_below(root: Path, folder: str) -> list[str]:
    """Paths of all that is no folder below `root / folder`, relative to `root`, sorted. Symbolic links are
    not followed, and a folder that may not be looked into stands for what is in it."""
    closed: list[OSError] = []
    found = [
        os.path.join(where, name)
        for where, folders, names in os.walk(root / folder, onerror=closed.append)
        for name in (*names, *(name for name in folders if os.path.islink(os.path.join(where, name))))
    ]
    paths = [*found, *(error.filename for error in closed)]
    return sorted(Path(path).relative_to(root).as_posix() for path in paths)


def dump(digests: Iterable[tuple[str, str]]) -> str:
    """The list as text, of paths and digests."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests)


def can_hold(name: str) -> bool:
    """Whether a list gives this name back as it is."""
    line = f"{'0' * 64}  {name}"
    try:
        name.encode()
    except UnicodeError:
        return False
    return _LINE.fullmatch(line) is not None and line.splitlines() == [line]


def read_list(where: Path) -> dict[str, str]:
    """Relative path -> hex SHA-256 of a list.
    Raises: BadFileError: unreadable, of another format, a path twice, or one that leaves the folder."""
    digests: dict[str, str] = {}
    for number, line in enumerate(read_text(where).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadFileError(where, f"line {number} is no digest and path")
        digest, name = match.groups()
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or name in digests:
            raise BadFileError(where, f"line {number} names {name!r}, which no list of ours does")
        digests[name] = digest
    if not digests:
        raise BadFileError(where, "lists nothing")
    return digests


def check(root: Path, listed: Mapping[str, str], there: Collection[str], what: Path, *, strict: bool) -> None:
    """Holds the files `there` under `root` against a list. strict: there are no others. Logs every few
    seconds how far it has come with `what`; silent where it is quick. Raises: BadFileError: the first file,
    by name, that is missing, of another digest, or (strict) not listed."""
    for name in sorted({*listed, *(there if strict else ())}):
        if name not in listed:
            raise BadFileError(root / name, "is in no list of digests", "remove it")
        if name not in there:
            raise BadFileError(root / name, "is missing")
    names, done = sorted(listed), 0
    sizes = {name: (root / name).lstat().st_size for name in names}
    total, started, told = sum(sizes.values()), time.monotonic(), time.monotonic()
    for name, digest in hash_files(root, names):
        if digest != listed[name]:
            raise BadFileError(root / name, f"has SHA-256 {digest}, its list says {listed[name]}")
        done, now = done + sizes[name], time.monotonic()
        if now - told >= _QUIET_SECONDS:
            told, left = now, (now - started) * (total - done) / max(done, 1)
            logger.info("%s: %.1f of %.1f GiB verified, %.0f s left", what, done / 2**30, total / 2**30, left)


def _regular_size(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise BadFileError(path, "is missing" if missing else f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(path, "is no regular file", "remove it")
    return status.st_size
