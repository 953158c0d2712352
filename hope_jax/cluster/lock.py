"""One run at a time in a workdir."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from hope_jax.core.errors import ConfigError

logger = logging.getLogger("hope_jax.training")

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """While entered, no other process can enter the lock of the same workdir.

    The kernel holds it for the process (`flock`), so it ends with the process however that dies, and the file
    that stays behind blocks nobody. On a file system without locks it warns and protects nothing.

    Raises, on entering: ConfigError if another run holds it. OSError if the folder cannot be written.
    """
    file = os.open(workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--workdir={workdir} is in use by another run{_holder(file)}; nothing was changed. Wait "
                "for it, stop it, or choose another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warning = "%s: this file system has no locks (%s); see to it that no other run uses the folder"
            logger.warning(warning, workdir, error.strerror)
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(file, 0)
        os.write(file, (json.dumps(about) + "\n").encode())
        yield
    finally:
        os.close(file)


def _holder(file: int) -> str:
    """Who holds it, as far as the file says."""
    try:
        about = json.loads(os.pread(file, 1000, 0))
        return f" (process {about['pid']} on {about['host']}, since {about['since']})"
    except (ValueError, KeyError, TypeError, OSError):
        return ""
