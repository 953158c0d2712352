"""Checkpoints of a run, by Orbax: asynchronous, atomic, and readable without the program that wrote them.

`<workdir>/checkpoints/<step>/` holds three items: `state` (every array of the `TrainState`, by name), `data`
(the data iterator's state) and `meta` (configuration, tokenizer digest, versions, totals of the run). When
Orbax has written a checkpoint, it is read back and sealed with digests of its arrays and files (`seal.py`).

In a run of several processes each writes and reads its arrays, in one folder that all share; process 0
verifies, chooses, seals and sets aside, and the others follow.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from hope_jax.cluster import processes
from hope_jax.config.experiment import CheckpointConfig
from hope_jax.core.errors import CheckpointError
from hope_jax.core.files import flatten
from hope_jax.core.program import TrainState
from hope_jax.core.types import Array, PyTree
from hope_jax.storage import arrays, seal, stored
from hope_jax.storage.stored import DAMAGE, LoadedCheckpoint

logger = logging.getLogger("hope_jax.training")

Meta = dict[str, Any]

_CURSOR_KEYS = (
    *(f"data.{key}" for key in ("mixture", "task_options", "tokenizer", "seq_len", "batch_size")),
    *("train.seed", "train.step_offset"),
)
"""What gives the data iterator's state its meaning: a run cannot go on from it under other values. (Text and
shards may have moved to another `data.source`: the state knows them by their digest.)"""


@dataclass
class _NewestSealed(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint that a run would go on from, until the one being written is sealed too."""

    directory: Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """See `PreservationPolicy`."""
        sealed = [info.step for info in checkpoints if seal.is_sealed(self.directory, info.step)]
        return [info.step == max(sealed, default=None) for info in checkpoints]


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state, without its arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


@jax.jit
def _finite(leaves: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.all(jnp.isfinite(leaf)) for name, leaf in leaves.items()}


def first_non_finite(state: TrainState) -> str | None:
    """Dotted name of a leaf of `state` that holds a NaN or an infinity; None where every value is finite."""
    return next((name for name, good in _finite(arrays.named(state)).items() if not good), None)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _unwritten(what: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{what}: a checkpoint could not be written ({_brief(error)}); those "
        "before it are as they were. Make room or check the permissions, and run the same command again"
    )


class Checkpointer:
    """Saves and restores the checkpoints of one run, while it is entered as a context manager.

    directory: `<workdir>/checkpoints`, an absolute path; made if absent. settings: which checkpoints are
    kept, and whether they are verified on restore. config: the run's configuration as nested dicts. meta:
    what else goes into each checkpoint's `meta` (`tokenizer_digest`, `versions`, `git_revision`).
    """

    def __init__(
        self, directory: Path, settings: CheckpointConfig, config: dict[str, Any], meta: Meta
    ) -> None:
        self._directory, self._verify, self._config, self._meta = directory, settings.verify, config, meta
        self._first = jax.process_index() == 0
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: Future[None] | None = None
        for path in sorted(directory.glob("*tmp*")) if self._first and directory.exists() else ():
            logger.warning("%s: an unfinished checkpoint, removed; the one before it counts", path)
        policies = [checkpoint_managers.LatestN(settings.keep_last), _NewestSealed(directory)]
        if settings.keep_every:
            policies.append(checkpoint_managers.EveryNSteps(settings.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        # named from the start, so that the manager can describe items that it has not written itself
        handlers = {"data": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        handlers["state"] = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait for what is being written and release the threads."""
        self._sealer.shutdown()
        self._manager.close()

    def wait(self) -> None:
        """Wait until every checkpoint asked for is complete on disk: before, nothing may use the manager.
        Raises: CheckpointError if one could not be written."""
        sealing, self._sealing = self._sealing, None
        try:
            if sealing is not None:
                sealing.result()
        except (CheckpointError, *DAMAGE) as error:
            raise _unwritten(self._directory, error) from error

    def latest_path(self) -> Path | None:
        """Folder of the newest complete checkpoint."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self._directory / str(step)

    def save(self, step: int, state: TrainState, data: Any, progress: Mapping[str, float]) -> None:
        """Write checkpoint `step` in the background; the state may be donated as soon as this returns. data:
        JSON value of the data iterator. progress: totals of the run.
        Raises: CheckpointError if the folder cannot be written."""
        meta = {**self._meta, "config": self._config, "progress": dict(progress)}
        described = {"data": ocp.args.JsonSave(data), "meta": ocp.args.JsonSave(meta)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), **described)
        self.wait()
        try:
            self._manager.save(step, args=items, force=True)
        except DAMAGE as error:
            raise _unwritten(self._directory / str(step), error) from error
        self._sealing = self._sealer.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        """Reads the checkpoint back when it is on disk, and writes its sidecars. Runs in a thread."""
        self._manager.wait_until_finished()
        if not self._first:
            return
        loaded = stored.load_checkpoint(self._directory / str(step), verify=False)
        train, groups = loaded.config["train"], ("memory", "teach")
        online = {key: train[key] for key in ("online_chunk_size", "truncate_tokens")}
        about = {
            "checkpoint_digest": stored.digest(loaded),
            "tokenizer_digest": loaded.meta["tokenizer_digest"],
            "algorithm_mode": train["algorithm_mode"],
            "online": {**online, **{group: dict(loaded.config[group]) for group in groups}},
            "rng": loaded.state["rng"].tolist(),
            "data": loaded.data,
            "versions": loaded.meta["versions"],
            "git_revision": loaded.meta.get("git_revision"),
        }
        seal.write(self._directory, step, about, loaded.config)
        seal.remove_orphans(self._directory)

    def restore(self, like: TrainState) -> LoadedCheckpoint | None:
        """The newest good checkpoint, placed as `like` (an `abstract` state); None without one.

        Good is one whose files are what their digests say and that can be read. Newer ones are set aside
        (`unreadable-<step>`) with a loud message. Where a run was killed before its first checkpoint was
        sealed, an unsealed one counts, and is sealed now. Of several processes all must be able to read it.

        Raises: CheckpointError if it was written by a run that this configuration cannot continue, or if no
            checkpoint is good.
        """
        problems: list[str] = []
        for step in processes.word(self._candidates() if self._first else None):
            problem = processes.word(self._problem(step, like) if self._first else None)
            restored, problem = (None, problem) if problem else self._read_by_all(step, like)
            if restored is not None:
                if self._first:
                    self._set_aside([s for s in self._manager.all_steps() if s > step])
                    if not seal.is_sealed(self._directory, step):
                        self._seal(step)
                processes.barrier()
                self._manager.reload()
                return restored
            problems.append(f"{self._directory / str(step)} is unfinished or damaged ({problem}).")
            if self._first:
                logger.error("%s Trying the checkpoint before it.", problems[-1])
        if problems:
            raise CheckpointError(
                f"no checkpoint of {self._directory} can be read. {' '.join(problems)} Restore a folder from "
                "a backup, or start again with another --workdir."
            )
        return None

    def _candidates(self) -> list[int]:
        """Steps to try, newest first: the sealed ones, else all."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        sealed = [step for step in steps if seal.is_sealed(self._directory, step)]
        for step in steps:
            if step not in sealed:
                logger.warning("%s was not sealed: its writing was cut short", self._directory / str(step))
        return sealed or steps

    def _problem(self, step: int, like: TrainState) -> str:
        """Why a checkpoint is not good, as far as can be said before its arrays are read."""
        path = self._directory / str(step)
        try:
            if self._verify and seal.is_sealed(self._directory, step):
                seal.check(self._directory, step)
            meta, saved = stored.describe(path)
        except (CheckpointError, *DAMAGE) as error:
            return _brief(error)
        self._check_fit(path, meta, saved, like)
        return ""

    def _read_by_all(self, step: int, like: TrainState) -> tuple[LoadedCheckpoint | None, str]:
        """The checkpoint `step`; None and why, on all processes, if one of them cannot read it."""
        restored, problem = None, ""
        try:
            restored = self._read(step, like)
        except (CheckpointError, *DAMAGE) as error:
            problem = _brief(error)
        found = processes.everyone(problem)
        bad = [f"process {i}: {text}" if len(found) > 1 else text for i, text in enumerate(found) if text]
        return (None, "; ".join(bad)) if bad else (restored, "")

    def _read(self, step: int, like: TrainState) -> LoadedCheckpoint:
        loaded = stored.read(self._directory / str(step), like=like._asdict())
        return loaded._replace(state=TrainState(**loaded.state))

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames checkpoints, and their sidecars, out of the way of those that the run will write."""
        for step in steps:
            for path in [self._directory / str(step), *seal.sidecars(self._directory, step)]:
                target = path.with_name(f"unreadable-{path.name}")
                shutil.rmtree(target, ignore_errors=True)
                if path.exists():
                    path.rename(target)

    def _check_fit(self, path: Path, meta: Meta, saved: PyTree, like: TrainState) -> None:
        """Raise unless this run can go on from a checkpoint of `meta` and `saved` shapes."""
        old, new = flatten(meta["config"]), flatten(self._config)
        changes = {
            key: f"{key} ({old.get(key, 'absent')} -> {new.get(key, 'absent')})"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        }
        changed = ", ".join(changes.values()) or "no configuration key"
        remedy = "Go back to the old values, or start a new run with another --workdir."
        there, here = (
            {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in arrays.named(tree).items()}
            for tree in (saved, like._asdict())
        )
        if there != here:
            differing = [n for n in {**here, **there} if here.get(n) != there.get(n)]
            name = next((n for n in differing if n.startswith("params.")), differing[0])
            raise CheckpointError(
                f"{path} does not fit this configuration: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here. Changed since it was written: {changed}. {remedy}"
            )
        cursor = [text for key, text in changes.items() if key.startswith(_CURSOR_KEYS)]
        if cursor:
            raise CheckpointError(
                f"{path} cannot be continued on other data: {', '.join(cursor)} changed, so its data cursor "
                f"means nothing here. {remedy}"
            )
        theirs, ours = meta.get("tokenizer_digest"), self._meta.get("tokenizer_digest")
        if theirs != ours:
            raise CheckpointError(
                f"{path} was trained with another tokenizer (digest {theirs}, here {ours}): bring back the "
                "one that data.tokenizer named."
            )
        if changes:
            logger.warning("Resuming %s with changed configuration: %s", path, changed)
