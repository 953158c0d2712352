"""What can happen to a file on a disk, or be done to it."""

import os
from pathlib import Path

from hypothesis import strategies as st

WAYS = ("flip", "cut", "append", "empty", "remove", "rename", "extra", "link", "folder", "fifo")


def damage(path: Path, data: st.DataObject) -> Path:
    """Does one of `WAYS` to a file, drawn from `data`; the file that is then there besides, or itself."""
    how = data.draw(st.sampled_from(WAYS))
    content, other = bytearray(path.read_bytes()), path.with_name("other")
    if how == "flip" and content:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    elif how == "cut" and content:
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "empty" and content:
        path.write_bytes(b"")
    elif how == "rename":
        path.rename(other)
    elif how == "extra":
        other.write_bytes(content)
    elif how in ("append", "flip", "cut", "empty"):
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
    else:
        path.unlink()
        if how == "link":
            path.symlink_to("/etc/passwd")
        elif how == "folder":
            path.mkdir()
        elif how == "fifo":
            os.mkfifo(path)
    return other if how in ("rename", "extra") else path
