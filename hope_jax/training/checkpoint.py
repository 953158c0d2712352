"""Checkpoints of a run, by Orbax: asynchronous, atomic, and readable without the program that wrote them.

`<workdir>/checkpoints/<step>/` holds three items: `state` (every array of the `TrainState`, by name), `data`
(the data iterator's state) and `meta` (configuration, tokenizer digest, versions, totals of the run).
"""

import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from hope_jax.config import CheckpointConfig
from hope_jax.errors import CheckpointError
from hope_jax.training import arrays
from hope_jax.training.files import CHECKPOINT_DIR, flatten
from hope_jax.training.program import TrainState
from hope_jax.types import Array, PyTree

logger = logging.getLogger("hope_jax.training")

Meta = dict[str, Any]

_CURSOR_KEYS = (
    "data.source", "data.mixture", "data.tokenizer", "data.seq_len", "data.batch_size",
    "train.seed", "train.step_offset",
)  # fmt: skip
"""What gives the data iterator's state its meaning: a run cannot go on from it under other values."""

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError)
"""What Orbax and TensorStore raise for a folder that is unfinished, damaged or cannot be written."""


class Restored(NamedTuple):
    """A run's state at a checkpoint."""

    step: int
    state: TrainState
    data: Any
    meta: Meta


class LoadedCheckpoint(NamedTuple):
    """A checkpoint as plain arrays, for commands that do not train.

    state: `TrainState` field -> tree of dicts, lists and numpy arrays (only the fields asked for).
    config: the run's whole configuration as nested dicts.
    meta: `config`, `tokenizer_digest`, `versions`, `progress`.
    """

    path: Path
    step: int
    state: dict[str, PyTree]
    config: dict[str, Any]
    data: Any
    meta: Meta


def _handlers(state: ocp.CheckpointHandler) -> dict[str, ocp.CheckpointHandler]:
    """Named from the start, so that a manager can describe items that it has not written itself."""
    return {"state": state, "data": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}


def _leaves(tree: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Dotted leaf name -> (shape, dtype), alike for a live tree and for Orbax's metadata of it."""
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in arrays.named(tree).items()}


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state, without its arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def first_non_finite(state: TrainState) -> str | None:
    """Dotted name of a leaf of `state` that holds a NaN or an infinity; None where every value is finite."""
    leaves = arrays.named(state).items()
    floats = {name: leaf for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    if not floats or bool(_finite(list(floats.values()))):
        return None
    return next(name for name, leaf in floats.items() if not bool(_finite([leaf])))


def _changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> "old -> new" for every value that differs."""
    old, new = flatten(saved), flatten(config)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys}


def _listed(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{key} ({change})" for key, change in changes.items()) or "no configuration key"


class Checkpointer:
    """Saves and restores the checkpoints of one run. Use as a context manager, or call `close`.

    Args:
        directory: `<workdir>/checkpoints`, an absolute path; made if absent.
        settings: which checkpoints are kept.
        config: the run's configuration as nested dicts.
        meta: what else goes into each checkpoint's `meta` (`tokenizer_digest`, `versions`).
    """

    def __init__(
        self, directory: Path, settings: CheckpointConfig, config: dict[str, Any], meta: Meta
    ) -> None:
        self._directory = directory
        self._config = config
        self._meta = meta
        for path in sorted(directory.glob("*tmp*")) if directory.exists() else ():
            logger.warning("%s: an unfinished checkpoint, removed; the one before it counts", path)
        policies: list[checkpoint_managers.PreservationPolicy]
        policies = [checkpoint_managers.LatestN(settings.keep_last)]
        if settings.keep_every:
            policies.append(checkpoint_managers.EveryNSteps(settings.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(
            directory, options=options, item_handlers=_handlers(ocp.StandardCheckpointHandler())
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being written and release the threads."""
        self._manager.close()

    def wait(self) -> None:
        """Wait until every checkpoint asked for is complete on disk.

        Raises: CheckpointError if one could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except _DAMAGE as error:
            raise CheckpointError(
                f"a checkpoint in {self._directory} could not be written ({type(error).__name__}: {error}); "
                "make room or check the permissions, and run the same command again"
            ) from error

    def latest_path(self) -> Path | None:
        """Folder of the newest complete checkpoint."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self._directory / str(step)

    def save(self, step: int, state: TrainState, data: Any, progress: Mapping[str, float]) -> None:
        """Write checkpoint `step` in the background; the state may be donated as soon as this returns.

        Args:
            data: JSON value of the data iterator.
            progress: totals of the run.
        Raises: CheckpointError if the folder cannot be written.
        """
        meta = {**self._meta, "config": self._config, "progress": dict(progress)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except _DAMAGE as error:  # also of the save before, which runs in the background
            raise CheckpointError(
                f"{self._directory / str(step)} or the checkpoint before it cannot be written "
                f"({type(error).__name__}: {error}); make room or check the permissions"
            ) from error

    def restore(self, like: TrainState) -> Restored | None:
        """The newest checkpoint that can be read, placed as `like` (an `abstract` state); None without one.

        A checkpoint that cannot be read is set aside (`unreadable-<step>`) with a warning.

        Raises: CheckpointError if it was written by a run that this configuration cannot continue, or if
            no checkpoint is readable.
        """
        problems = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self._directory / str(step)
            try:
                meta, saved = self._describe(step)
            except _DAMAGE as error:
                problems.append(self._report(path, error))
                continue
            self._check_fit(path, meta, saved, like)
            try:
                restored = self._read(step, like, meta)
            except _DAMAGE as error:
                problems.append(self._report(path, error))
                continue
            self._set_aside([self._directory / str(s) for s in self._manager.all_steps() if s > step])
            return restored
        if problems:
            raise CheckpointError(
                f"no checkpoint of {self._directory} can be read. {' '.join(problems)} Restore a folder from "
                "a backup, or start again with another --workdir."
            )
        return None

    def _describe(self, step: int) -> tuple[Meta, PyTree]:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        return meta, self._manager.item_metadata(step)["state"].tree

    def _read(self, step: int, like: TrainState, meta: Meta) -> Restored:
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like._asdict()), data=ocp.args.JsonRestore()
            ),
        )
        return Restored(step, TrainState(**items.state), items.data, meta)

    def _report(self, path: Path, error: Exception) -> str:
        problem = f"{path} is unfinished or damaged ({type(error).__name__}: {str(error)[:200]})."
        logger.error("%s Trying the checkpoint before it.", problem)
        return problem

    def _set_aside(self, folders: list[Path]) -> None:
        if folders and jax.process_index() == 0:
            for folder in folders:
                target = folder.with_name(f"unreadable-{folder.name}")
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
        if folders:
            self._manager.reload()

    def _check_fit(self, path: Path, meta: Meta, saved: PyTree, like: TrainState) -> None:
        """Raise unless this run can go on from a checkpoint of `meta` and `saved` shapes."""
        changes = _changes(meta["config"], self._config)
        remedy = "Go back to the old values, or start a new run with another --workdir."
        there, here = _leaves(saved), _leaves(like._asdict())
        if there != here:
            differing = [n for n in {**here, **there} if here.get(n) != there.get(n)]
            name = next((n for n in differing if n.startswith("params.")), differing[0])
            raise CheckpointError(
                f"{path} does not fit this configuration: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here. Changed since it was written: {_listed(changes)}. {remedy}"
            )
        cursor = {k: v for k, v in changes.items() if k.startswith(_CURSOR_KEYS)}
        if cursor:
            raise CheckpointError(
                f"{path} cannot be continued on other data: {_listed(cursor)} changed, so its data cursor "
                f"means nothing here. {remedy}"
            )
        if meta.get("tokenizer_digest") != self._meta.get("tokenizer_digest"):
            raise CheckpointError(
                f"{path} was trained with another tokenizer (digest {meta.get('tokenizer_digest')}, here "
                f"{self._meta.get('tokenizer_digest')}): bring back the one that data.tokenizer named."
            )
        if changes:
            logger.warning("Resuming %s with changed configuration: %s", path, _listed(changes))


def _resolve(path: Path) -> tuple[Path, int]:
    """The folder of checkpoints and the step that `path` (workdir, checkpoints or step folder) names."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; name a workdir or one of its checkpoints/<step>")
    if path.name.isdigit():
        return path.parent, int(path.name)
    folder = path / CHECKPOINT_DIR if (path / CHECKPOINT_DIR).is_dir() else path
    steps = [int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    if not steps:
        raise CheckpointError(f"{path} holds no checkpoint; name a workdir or one of its checkpoints/<step>")
    return folder, max(steps)


def load_checkpoint(path: Path, fields: Collection[str] = TrainState._fields) -> LoadedCheckpoint:
    """Read a checkpoint as numpy arrays, on any machine and without building its program.

    Args:
        path: a workdir (its newest checkpoint), its `checkpoints` folder, or one `checkpoints/<step>`.
        fields: which parts of the `TrainState` to read, e.g. ("params", "fast").
    Raises: CheckpointError if there is none or it cannot be read.
    """
    folder, step = _resolve(path.absolute())
    where = folder / str(step)
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta, data = reader.restore(where / "meta"), reader.restore(where / "data")
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(where / "state").tree
        with ocp.Checkpointer(handler) as reader:
            wanted = {name: tree[name] for name in fields}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            how = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
            state = reader.restore(where / "state", args=how)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{where} cannot be read ({type(error).__name__}: {str(error)[:200]}): it is unfinished, "
            "damaged, or not a checkpoint of this package; name another checkpoints/<step>"
        ) from error
    return LoadedCheckpoint(where, step, state, meta["config"], data, meta)
