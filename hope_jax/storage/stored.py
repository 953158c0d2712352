"""A checkpoint as plain arrays, for commands that do not train; verified, and verified before it is read.

Reading executes nothing: arrays by Orbax (TensorStore), the rest as JSON and YAML.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import yaml

from hope_jax.core.errors import CheckpointError
from hope_jax.core.files import CHECKPOINT_DIR
from hope_jax.core.program import TrainState
from hope_jax.core.types import PyTree
from hope_jax.storage import arrays, digests, seal
from hope_jax.storage.digests import BadFileError

_STEP = re.compile("0|[1-9][0-9]{0,17}", re.ASCII)

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError)
"""What Orbax and TensorStore raise for a folder that is unfinished, damaged or cannot be written."""


# Orbax keeps the shapes of single writes in files of their own, which nothing here needs and which it finds
# by a pattern: a stray file beside them would be taken for one of them, and end the reading.
_absl, _handler = logging.getLogger("absl"), ocp.type_handlers.ArrayHandler(array_metadata_store=None)
_absl.disabled = True  # it warns of every change
ocp.type_handlers.register_type_handler(jax.Array, _handler, override=True)
_absl.disabled = False


class Verified(NamedTuple):
    """What was found good. digest: of the arrays (a workdir's: of its newest checkpoint). files: how many.
    extra: paths of others that lie in the checkpoints' folders, and are none of theirs."""

    digest: str
    files: int
    extra: tuple[str, ...] = ()


class LoadedCheckpoint(NamedTuple):
    """A checkpoint as plain arrays. state: `TrainState` field -> tree of dicts, lists and numpy arrays (only
    the fields asked for). config: the run's whole configuration as nested dicts. meta: `config`,
    `tokenizer_digest`, `versions`, `progress`, and of shards `sources` (`Inputs.about`)."""

    path: Path
    step: int
    state: PyTree
    config: dict[str, Any]
    data: Any
    meta: dict[str, Any]


def step_of(path: Path) -> int | None:
    """The step whose folder `path` is, by its name; None for others, also a workdir named by a number."""
    named = _STEP.fullmatch(path.name) and not (path / CHECKPOINT_DIR).exists()
    return int(path.name) if named else None


def resolve(path: Path) -> tuple[Path, int]:
    """The folder of checkpoints and the step that `path` (workdir, checkpoints or step folder) names.
    Raises: CheckpointError if there is none."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; name a workdir or one of its checkpoints/<step>")
    if (step := step_of(path)) is not None:
        return path.parent, step
    folder = path / CHECKPOINT_DIR if (path / CHECKPOINT_DIR).is_dir() else path
    steps = [step for p in folder.iterdir() if p.is_dir() and (step := step_of(p)) is not None]
    steps = [step for step in steps if seal.is_sealed(folder, step)] or steps
    if not steps:
        raise CheckpointError(f"{path} holds no checkpoint; name a workdir or one of its checkpoints/<step>")
    return folder, max(steps)


def resume_point(workdir: Path) -> str:
    """From what a run goes on, in words."""
    try:
        return f"checkpoint {resolve(workdir)[1]}"
    except (CheckpointError, OSError):
        return "the beginning, as no checkpoint had been finished"


def load_checkpoint(
    path: Path, fields: Collection[str] = TrainState._fields, *, verify: bool = True
) -> LoadedCheckpoint:
    """Read a checkpoint as numpy arrays, on any machine and without building its program.

    path: a workdir (its newest checkpoint), its `checkpoints` folder, or one `checkpoints/<step>`. fields:
    which parts of the `TrainState` to read, e.g. ("params", "fast"). verify: hold all its files against their
    digests first.
    Raises: CheckpointError if there is none, a file is not what its digest says, or it cannot be read.
    """
    folder, step = resolve(path.absolute())
    if verify:
        seal.check(folder, step)
    where = folder / str(step)
    try:
        return read(where, fields)
    except DAMAGE as error:
        raise CheckpointError(
            f"{where} cannot be read ({type(error).__name__}: {str(error)[:200]}): it is unfinished, "
            "damaged, or not a checkpoint of this package; name another checkpoints/<step>"
        ) from error


def read(
    where: Path, fields: Collection[str] = TrainState._fields, like: PyTree | None = None
) -> LoadedCheckpoint:
    """The checkpoint folder `where`, its state as numpy arrays, or placed as `like` (shapes, dtypes and
    shardings): then each of several processes reads its part and waits for no other.
    Raises: `DAMAGE`. CheckpointError: it declares arrays larger than the machine's memory."""
    meta, tree = describe(where)
    wanted = {name: tree[name] for name in fields}
    size = sum(int(np.prod(leaf.shape, dtype=object)) * np.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(wanted))  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:  # before any is allocated
        raise CheckpointError(
            f"{where} declares arrays of {size / 2**30:,.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f}; read it on a larger one, or restore it from a copy if it is damaged"
        )
    if like is None:
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        how = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
        state = _read(ocp.PyTreeCheckpointHandler, where / "state", how)
    else:
        state = _read(ocp.StandardCheckpointHandler, where / "state", ocp.args.StandardRestore(like))
    data = _read(ocp.JsonCheckpointHandler, where / "data")
    return LoadedCheckpoint(where, int(where.name), state, meta["config"], data, meta)


def describe(path: Path) -> tuple[dict[str, Any], PyTree]:
    """The `meta` of the checkpoint folder `path`, and shapes and dtypes of its `state`. Raises: `DAMAGE`."""
    meta = _read(ocp.JsonCheckpointHandler, path / "meta")
    return meta, ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def _read(handler: Callable[..., Any], path: Path, args: Any = None) -> Any:
    """As if this process were the only one."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    own = handler(multiprocessing_options=alone)
    with ocp.Checkpointer(own, multiprocessing_options=alone) as reader:
        return reader.restore(path) if args is None else reader.restore(path, args=args)


def digest(loaded: LoadedCheckpoint) -> str:
    """Hex SHA-256 over all arrays of a checkpoint and its data cursor, independent of the files' layout."""
    cursor = json.dumps(loaded.data, sort_keys=True)
    return hashlib.sha256(f"{arrays.digest(arrays.named(loaded.state))}\n{cursor}\n".encode()).hexdigest()


def digest_of(path: Path) -> str:
    """The digest of the checkpoint at `path`; its files are checked first. Raises: CheckpointError."""
    return digest(load_checkpoint(path))


def verify(path: Path) -> Verified:
    """Recomputes every digest of a workdir, a folder `checkpoints`, or one `checkpoints/<step>`.
    Raises: BadFileError: names the first bad file. CheckpointError: there is nothing to verify."""
    path = path.absolute()
    folder, newest = resolve(path)
    if step_of(path) is not None:
        return verify_checkpoint(folder, newest)
    # a seal whose folder is gone counts too
    entries = [entry.with_suffix("") if entry.suffix == ".sha256" else entry for entry in folder.iterdir()]
    steps = sorted({step for entry in entries if (step := step_of(entry)) is not None})
    each = {step: verify_checkpoint(folder, step) for step in steps}
    extra = tuple(name for one in each.values() for name in one.extra)
    return Verified(each[newest].digest, sum(one.files for one in each.values()), extra)


def verify_checkpoint(folder: Path, step: int, *, strict: bool = False) -> Verified:
    """Files against their list; arrays, cursor and configuration against the metadata beside them. strict:
    its folder holds no other file.
    Raises: BadFileError: names the first bad file."""
    meta, files, extra = seal.check(folder, step, strict=strict)
    loaded = load_checkpoint(folder / str(step), verify=False)
    meta_path, config_path, _ = seal.sidecars(folder, step)
    found = {
        "checkpoint_digest": digest(loaded),
        "tokenizer_digest": loaded.meta.get("tokenizer_digest"),
        "data": loaded.data,
    }
    for key, value in found.items():
        if meta.get(key) != value:
            problem = f"says {key} is {meta.get(key)!r}, the checkpoint's is {value!r}"
            raise BadFileError(meta_path, problem)
    if yaml.safe_load(digests.read_text(config_path)) != loaded.config:
        raise BadFileError(config_path, "is another configuration than the checkpoint's own")
    return Verified(found["checkpoint_digest"], files, tuple(str(folder / name) for name in extra))
