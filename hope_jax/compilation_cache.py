"""Compiled programs kept on disk, so that a run that is started again does not compile again.

`--compilation_cache=DIR` names the folder; default: hope_jax/ in the user's cache folder, there one folder
for each kind of CPU, as programs for one need not run on another; `none` keeps nothing. JAX does the work:
an entry is found by the program, its options, the devices and the versions of JAX and XLA, so an old entry
is never wrong, and one that cannot be read is compiled anew, with a warning. Several processes may use a
folder at once; of a run over several only the first writes. Nothing is ever removed: the folder may be
deleted at any time.
"""

import hashlib
import logging
import os
import platform
import re
from pathlib import Path

from hope_jax import cli

logger = logging.getLogger("hope_jax")

WORTHWHILE = 1.0
"""Seconds: programs that compile faster are not kept."""

_CPU_INFO = Path("/proc/cpuinfo")
_FOLDER = cli.define_path(
    "compilation_cache",
    "Folder of compiled programs; default: in the user's cache folder; none: they are not kept.",
)


def default_folder() -> Path | None:
    """hope_jax/NAME in the user's cache folder, NAME a digest of the CPU's features; None for a user that has
    neither an account nor HOME, as in a container that runs under a number."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    info = _CPU_INFO.read_text(errors="replace") if _CPU_INFO.is_file() else ""
    features = re.search(r"^(flags|Features)\s*:(.*)$", info, re.MULTILINE)
    text = " ".join(sorted(set(features[2].split()))) if features else platform.machine()
    return cache / "hope_jax" / hashlib.sha256(text.encode()).hexdigest()[:16]


def use() -> None:
    """Has JAX keep compiled programs as the flag says; before the first compilation.

    A folder that JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) names stays, unless the flag names another.
    Where there is none that can be written, nothing is kept, and all else goes on.
    """
    import jax

    if _FOLDER.value == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if _FOLDER.value or not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = Path(_FOLDER.value) if _FOLDER.value else default_folder()
        why = "there is no home folder"
        if folder:
            folder = folder.absolute()
            there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            writable = os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
            why = "" if writable else f"{folder} cannot be written"
        if why:
            logger.warning("%s: compiled programs are not kept (--compilation_cache names a folder)", why)
            jax.config.update("jax_enable_compilation_cache", False)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTHWHILE)
