"""Plain text files of a workdir: written whole or not at all, and readable without this package."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from hope_jax.core.errors import WorkdirError

logger = logging.getLogger("hope_jax.training")

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
CHECKPOINT_DIR = "checkpoints"
ALARM_FILE = "alarm.txt"
"""Why `eval.alarm=stop` ended the last start; launch scripts do not start such a run again."""
MANIFEST_FILE = "MANIFEST.txt"
"""Of a release bundle: the digests of its files."""
REPORT_FILE = "report.html"
LOSS_FILE = "loss.png"
TOKENIZER_FILE = "tokenizer.model"
BASELINE_DIR, EVAL_DIR = "baselines", "evals"
"""These three of a release bundle alone."""
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place when the block ends, whole and on disk.

    After an exception or a crash `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Raises: WorkdirError, with a remedy, for what the system says of a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = error.filename or workdir
        raise WorkdirError(
            f"--workdir={workdir}: {where} cannot be written ({error.strerror}). Checkpoints that were "
            "complete are as they were: make room or give write permission, and run the same command again, "
            "or choose another --workdir"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` with `text` (UTF-8); a crash leaves the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(text.encode())


def as_plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, recursively; other values unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_plain(item) for item in value]
    return value


def to_json(value: Any) -> Any:
    """`value` with arrays as nested lists and non-finite numbers as None, so that it is valid JSON.

    A float32 becomes the shortest decimal that reads back as the same float32.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):  # np.float64 included
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    array = np.asarray(value)
    if array.ndim:
        return [to_json(item) for item in array]
    if np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        return array.item()
    return float(str(array[()])) if np.isfinite(array) else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved configuration as plain YAML."""
    return yaml.safe_dump(dict(config), sort_keys=False)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, up to the first line that a crash cut short; [] without a file."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError):  # no JSON, or no text
        for line in path.read_bytes().splitlines() if path.exists() else ():
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def dump_row(row: Mapping[str, Any]) -> str:
    """One line of `metrics.jsonl`."""
    return json.dumps(to_json(row), allow_nan=False) + "\n"


def cut_back(path: Path, step: int) -> None:
    """Drop the rows after `step` (atomically).

    Where more goes than a resumed run will write again (lines behind one that cannot be read, or every row,
    as there is no checkpoint), the file stays as `<name>.old`, with a warning.
    """
    if not path.exists():
        return
    there = read_rows(path)
    rows = [row for row in there if row["step"] <= step]
    unread = path.read_bytes().count(b"\n") - len(there)
    if unread > 0 or (there and not rows):
        old = path.with_name(f"{path.name}.old")
        shutil.copyfile(path, old)
        why = f"{unread} lines cannot be read" if unread > 0 else "no checkpoint goes with its rows"
        logger.warning("%s: %s; it is kept as %s", path, why, old.name)
    write_atomic(path, "".join(dump_row(row) for row in rows))
