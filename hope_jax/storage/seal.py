"""The sidecars of a checkpoint: what it belongs to, and a digest of every file. Written last, checked first.

Beside `checkpoints/<step>/` lie `<step>.yaml` (the resolved configuration), `<step>.meta.json` (digests,
tokenizer, mode, random stream, data cursor, versions) and `<step>.sha256`, which lists these two and every
file of the folder and is written when all of them are on disk: a checkpoint without it is unfinished. From
the folder `checkpoints`, `sha256sum -c <step>.sha256` checks the same.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from hope_jax.core.files import MANIFEST_FILE, as_yaml, write_atomic
from hope_jax.core.paths import is_left_behind
from hope_jax.storage import digests
from hope_jax.storage.digests import BadFileError

logger = logging.getLogger("hope_jax.training")

FORMAT, VERSION = "hope_jax checkpoint", 1
_SUFFIXES = (".meta.json", ".yaml", ".sha256")
_SHOWN = 5
"""Names that a warning tells."""

Meta = dict[str, Any]


def sidecars(folder: Path, step: int) -> list[Path]:
    """The paths of a step's sidecars: meta, configuration, list."""
    return [folder / f"{step}{suffix}" for suffix in _SUFFIXES]


def write(folder: Path, step: int, meta: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Seals the checkpoint `folder / <step>`, which is complete on disk. meta: JSON value; format, version,
    step, and the configuration's digest are added.
    Raises: OSError if the folder cannot be written."""
    meta_path, config_path, list_path = sidecars(folder, step)
    text = as_yaml(config)
    head = {"format": FORMAT, "version": VERSION, "step": step, "config_digest": _digest(text)}
    write_atomic(config_path, text)
    write_atomic(meta_path, json.dumps({**head, **meta}, indent=1, allow_nan=False) + "\n")
    # Not what others may change or take away again.
    names = [name for name in _sealed_files(folder, step) if not is_left_behind(PurePath(name))]
    write_atomic(list_path, digests.dump(digests.hash_files(folder, names)))


def is_sealed(folder: Path, step: int) -> bool:
    """Whether the sealing of this checkpoint came to its end."""
    return sidecars(folder, step)[-1].is_file()


class Sealed(NamedTuple):
    """meta: what lies beside the checkpoint. files: how many belong to it, its list too. extra: what lies in
    its folder and is in no list, relative to the folder of checkpoints."""

    meta: Meta
    files: int
    extra: list[str]


def check(folder: Path, step: int, *, strict: bool = False) -> Sealed:
    """Holds every file of a checkpoint against its list.

    What lies in the folder besides (file managers and network file systems leave such files) is warned of: it
    is not read, and takes nothing away from files that are good. strict, and in a release bundle: it is an
    error. Nothing is read but bytes, lists and JSON.
    Raises: BadFileError: names the first bad file.
    """
    meta_path, config_path, list_path = sidecars(folder, step)
    if not (folder / str(step)).is_dir():
        raise BadFileError(folder / str(step), "is missing, or no folder")
    if not list_path.exists():
        problem = "is missing: the checkpoint was not finished"
        raise BadFileError(list_path, problem, "take the one before it")
    listed = digests.read_list(list_path)
    there = _sealed_files(folder, step)
    for name in (meta_path.name, config_path.name):
        if name not in listed:
            raise BadFileError(list_path, f"does not list {name}")
    strict = strict or (folder.parent / MANIFEST_FILE).exists()
    digests.check(folder, listed, there, folder / str(step), strict=strict)
    if extra := sorted({*there} - {*listed}):
        names = ", ".join(extra[:_SHOWN]) + (f" and {len(extra) - _SHOWN} more" if extra[_SHOWN:] else "")
        logger.warning("%s: not of this checkpoint, and not read: %s; it can be removed", folder, names)
    meta = read_meta(folder, step)
    if meta.get("config_digest") != _digest(digests.read_text(config_path)):
        raise BadFileError(config_path, f"is not what {meta_path.name} was written for")
    return Sealed(meta, len(listed) + 1, extra)


def remove_orphans(folder: Path) -> None:
    """Removes the sidecars of checkpoints that are no longer kept."""
    for path in folder.iterdir():
        step, dot, suffix = path.name.partition(".")
        if step.isdecimal() and dot + suffix in _SUFFIXES and not (folder / step).exists():
            path.unlink(missing_ok=True)


def _sealed_files(folder: Path, step: int) -> list[str]:
    meta_path, config_path, _ = sidecars(folder, step)
    beside = [path.name for path in (meta_path, config_path) if path.exists()]
    return sorted([*digests.files_below(folder, str(step)), *beside])


def read_meta(folder: Path, step: int) -> Meta:
    """The metadata beside a checkpoint. Raises: BadFileError: none of this format, version and step."""
    path = sidecars(folder, step)[0]
    meta = digests.read_metadata(path, FORMAT, VERSION, "metadata of a checkpoint")
    if meta.get("step") != step:
        raise BadFileError(path, f"belongs to step {meta.get('step')}, not {step}")
    return meta


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
