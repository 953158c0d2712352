"""What is evaluated: a checkpoint as a model that streams, and what to say of it beside every figure."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import resolve
from hope_jax.core import files
from hope_jax.core.types import PyTree
from hope_jax.storage import arrays, seal, stored
from hope_jax.storage.trained import Trained, prepare


class Subject(NamedTuple):
    """name: of the run and the step, for example `pilot_smoke/300`. config: of the run. about: path, step,
    digests, versions and architecture, for the head of every result."""

    name: str
    trained: Trained
    config: ExperimentConfig
    about: dict[str, Any]

    @property
    def shared_memory(self) -> bool:
        """Whether a fast state belongs to a whole batch (`memory.scope=batch`): contexts that must not meet
        are then read one at a time."""
        return self.trained.streamer.model.spec.memory.scope == "batch"

    def batch_size(self, wanted: int) -> int:
        """Contexts that may be read side by side, at most `wanted`."""
        return 1 if self.shared_memory else wanted


def open_subject(path: Path) -> Subject:
    """The checkpoint that `path` (workdir: its newest, checkpoints/<step>, or release bundle) names. All its
    files are held against their digests first. A run in float64 is evaluated in float64. Raises:
    CheckpointError: there is none, a file is not what its digest says, or it does not fit this version;
    DataError: its tokenizer cannot be read."""
    loaded = stored.load_checkpoint(path, ("params", "fast"))
    config = resolve(loaded.config)
    validate(config)
    if config.train.compute_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    trained = prepare(loaded, config)
    run = loaded.path.parent.parent
    plain = files.as_plain(config)
    # What figures depend on: memories too where training left any.
    evaluated = {k: v for k, v in loaded.state.items() if k == "params" or trained.fast is not None}
    about = {
        "checkpoint": f"{run.name}/{loaded.path.parent.name}/{loaded.step}",
        "step": loaded.step,
        "arrays_digest": arrays.digest(arrays.named(evaluated)),
        "config_digest": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest(),
        "tokenizer_digest": trained.tokenizer.sha256,
        "versions": loaded.meta["versions"],
        "block_variant": config.model.block_variant,
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(trained.params)),
        "config": plain,
    }
    return Subject(f"{run.name}/{loaded.step}", trained, config, about)


def checkpoint_paths(path: Path) -> list[Path]:
    """All finished checkpoints of a workdir, oldest first; those of any other path: the one it names. Raises:
    CheckpointError: there is none."""
    folder, newest = stored.resolve(path.absolute())
    if stored.step_of(path.absolute()) is not None:
        return [folder / str(newest)]
    steps = [step for p in folder.iterdir() if p.is_dir() and (step := stored.step_of(p)) is not None]
    sealed = [step for step in steps if seal.is_sealed(folder, step)] or [newest]
    return [folder / str(step) for step in sorted(sealed)]


def take(subject: Subject, fast: PyTree | None, rows: list[int]) -> PyTree | None:
    """The memories of some contexts, leaves [rows, ...]; memories of one context serve all of them."""
    if fast is None or subject.shared_memory:
        return fast
    of = np.asarray(rows)
    return jax.tree.map(lambda t: jnp.take(t, of * 0 if len(t) == 1 else of, axis=0), fast)
