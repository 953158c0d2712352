"""A checkpoint as plain arrays, for commands that do not train; verified before it is read.

Reading executes nothing: arrays by Orbax (TensorStore), the rest as JSON and YAML.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from hope_jax.core.errors import CheckpointError
from hope_jax.core.files import CHECKPOINT_DIR
from hope_jax.core.program import TrainState
from hope_jax.core.types import PyTree
from hope_jax.storage import arrays, seal
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


class LoadedCheckpoint(NamedTuple):
    """A checkpoint as plain arrays, for commands that do not train.

    state: `TrainState` field -> tree of dicts, lists and numpy arrays (only the fields asked for).
    config: the run's whole configuration as nested dicts.
    meta: `config`, `tokenizer_digest`, `versions`, `progress`, and of shards `sources` (`Inputs.about`).
    """

    path: Path
    step: int
    state: dict[str, PyTree]
    config: dict[str, Any]
    data: Any
    meta: dict[str, Any]


def step_of(path: Path) -> int | None:
    """The step whose folder `path` is, by its name; None for others, also a workdir named by a number."""
    named = _STEP.fullmatch(path.name) and not (path / CHECKPOINT_DIR).exists()
    return int(path.name) if named else None


def resolve(path: Path) -> tuple[Path, int]:
    """The folder of checkpoints and the step that `path` (workdir, checkpoints or step folder) names.

    Raises: CheckpointError if there is none.
    """
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


def load_checkpoint(
    path: Path, fields: Collection[str] = TrainState._fields, *, verify: bool = True
) -> LoadedCheckpoint:
    """Read a checkpoint as numpy arrays, on any machine and without building its program.

    Args:
        path: a workdir (its newest checkpoint), its `checkpoints` folder, or one `checkpoints/<step>`.
        fields: which parts of the `TrainState` to read, e.g. ("params", "fast").
        verify: hold all its files against their digests first.
    Raises: CheckpointError if there is none, a file is not what its digest says, or it cannot be read.
    """
    folder, step = resolve(path.absolute())
    if verify:
        try:
            seal.check(folder, step)
        except BadFileError as error:
            raise error.under(folder) from error
    where = folder / str(step)
    try:
        meta, tree = describe(where)
        data = read_json(where / "data")
        wanted = {name: tree[name] for name in fields}
        check_size(where, wanted)
        alone = _alone()
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            how = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
            state = reader.restore(where / "state", args=how)
        return LoadedCheckpoint(where, step, state, meta["config"], data, meta)
    except DAMAGE as error:
        raise CheckpointError(
            f"{where} cannot be read ({type(error).__name__}: {str(error)[:200]}): it is unfinished, "
            "damaged, or not a checkpoint of this package; name another checkpoints/<step>"
        ) from error


def describe(path: Path) -> tuple[dict[str, Any], PyTree]:
    """The `meta` of the checkpoint folder `path`, and shapes and dtypes of its `state`. Raises: `DAMAGE`."""
    return read_json(path / "meta"), ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def read_json(path: Path) -> Any:
    """The JSON item of a checkpoint at `path`. Raises: `DAMAGE`."""
    alone = _alone()
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(path)


def read_arrays(path: Path, like: PyTree) -> PyTree:
    """The `state` of the checkpoint folder `path`, placed as `like` (shapes, dtypes and shardings); each of
    several processes reads its part and waits for no other. Raises: `DAMAGE`."""
    alone = _alone()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(path / "state", args=ocp.args.StandardRestore(like))


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax's options for a process that reads without the others of its run."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def digest(loaded: LoadedCheckpoint) -> str:
    """Hex SHA-256 over all arrays of a checkpoint and its data cursor, independent of the files' layout."""
    cursor = json.dumps(loaded.data, sort_keys=True)
    return hashlib.sha256(f"{arrays.digest(arrays.named(loaded.state))}\n{cursor}\n".encode()).hexdigest()


def check_size(path: Path, declared: PyTree) -> None:
    """Refuses metadata that declare arrays larger than the machine's memory, before any is allocated.

    Raises: CheckpointError.
    """
    size = sum(int(np.prod(leaf.shape, dtype=object)) * np.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(declared))  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise CheckpointError(
            f"{path} declares arrays of {size / 2**30:,.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f}; read it on a larger one, or restore it from a copy if it is damaged"
        )
