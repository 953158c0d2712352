"""Texts of users that name files and folders, and what operating systems leave in folders."""

import os
import tempfile
from pathlib import Path, PurePath

from hope_jax.core.errors import ConfigError

_LEFT_BEHIND = {
    "$recycle.bin", "#recycle", ".appledouble", ".ds_store", ".fseventsd", ".spotlight-v100", ".trashes",
    "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found", "system volume information",
    "thumbs.db",
}  # fmt: skip
_LEFT_PREFIXES = ("._", ".nfs", ".fuse_hidden", ".trash-")


def as_path(key: str, text: str) -> Path:
    """The path that a flag, key or argument names. An empty text is none: to the system it would be the
    current folder, which is written `.`.

    Raises: ConfigError.
    """
    if not text.strip():
        raise ConfigError(
            f"{key}={text!r}: want a path, and this is empty; was a variable not set? The current folder is "
            "written ."
        )
    return Path(text)


def split_paths(key: str, text: str) -> list[Path]:
    """Paths that are separated by commas, which may stand in their names too: from left to right the longest
    run of parts that is there is one path; what is not there ends at the next comma.

    Raises: ConfigError: one of them is empty.
    """
    found: list[Path] = []
    parts = text.split(",")
    while parts:
        runs = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        path = next((run for run in runs if run.strip() and os.path.exists(run)), parts[0])
        if not path.strip():
            raise ConfigError(f"{key}={text}: want paths separated by commas, and one of them is empty")
        found.append(Path(path))
        del parts[: path.count(",") + 1]
    return found


def is_left_behind(path: PurePath) -> bool:
    """Whether a relative path is a file, or below a folder, that an operating system, a file manager or a
    network file system keeps for itself: no text or result of anybody."""
    names = [name.lower() for name in path.parts]
    return any(name in _LEFT_BEHIND or name.startswith(_LEFT_PREFIXES) for name in names)


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """The regular files below a folder that fit any of the patterns, sorted; none that `is_left_behind`."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not is_left_behind(path.relative_to(folder)))


def make_room(folder: Path) -> None:
    """Where the system has no folder for temporary files that can be written (as in a container whose disk is
    read-only), libraries put theirs into this one, which is made; some cannot be imported without.

    Raises: OSError: it cannot be made.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(folder.absolute())  # of processes that this one starts, too
