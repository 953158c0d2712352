"""Folders for datatrove that are nothing but folders, whatever signs their paths hold."""

from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from datatrove.io import DataFolder
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from hope_jax.core.paths import is_left_behind


class PlainFolder(DataFolder):
    """A local folder. datatrove's own takes brackets and stars in its path for a pattern, so that it finds no
    file there, and a double colon for a chain of file systems."""

    def __init__(self, path: str | Path, fs: Any = None, **options: Any) -> None:
        super().__init__(str(path), fs or LocalFileSystem(), **options)

    def list_files(
        self,
        subdirectory: str = "",
        recursive: bool = True,
        glob_pattern: str | None = None,
        include_directories: bool = False,
    ) -> list[str]:
        """Files by path in this folder, sorted; with a pattern those whose path in `subdirectory` fits it."""
        listed = super().list_files(subdirectory, recursive, None, include_directories)
        found = [name for name in listed if not is_left_behind(PurePosixPath(name))]
        if not glob_pattern:
            return found
        pattern = glob_pattern if has_magic(glob_pattern) else f"*{glob_pattern}"
        start = len(subdirectory) + 1 if subdirectory else 0
        inside = ((f, f[start:]) for f in found)
        return [f for f, p in inside if p.count("/") == pattern.count("/") and fnmatchcase(p, pattern)]
