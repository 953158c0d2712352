"""One run at a time in a workdir."""

import errno
import fcntl
import json
import logging
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from hope_jax.core.errors import ConfigError

logger = logging.getLogger("hope_jax.training")

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class WorkdirLock:
    """While entered, no other process can enter the lock of the same workdir.

    The kernel holds it for the process (`flock`), so it ends with the process however that dies, and the file
    that stays behind blocks nobody. On a file system without locks it warns and protects nothing.

    Raises, on entering: ConfigError if another run holds it. OSError if the folder cannot be written.
    """

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / LOCK_FILE
        self._file: int | None = None

    def __enter__(self) -> Self:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _described(file)
            os.close(file)
            raise ConfigError(
                f"--workdir={self._path.parent} is in use by another run{holder}; nothing was changed. Wait "
                "for it, stop it, or choose another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            logger.warning(
                "%s: this file system has no locks (%s); see to it that no other run uses the folder",
                self._path.parent,
                error.strerror,
            )
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        try:
            os.ftruncate(file, 0)
            os.write(file, (json.dumps(about) + "\n").encode())
        except OSError:
            os.close(file)
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _described(file: int) -> str:
    """Who holds it, as far as the file says."""
    try:
        about = json.loads(os.pread(file, 1000, 0))
        return f" (process {about['pid']} on {about['host']}, since {about['since']})"
    except (ValueError, KeyError, TypeError, OSError):
        return ""
