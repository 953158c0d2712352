"""The data pipeline's own pace beside the training step of `configs/pilot_smoke.py`, and what the step waits.

`loader/pilot_smoke`: batches as training takes them (shuffled, packed, batched and prefetched by grain, then
placed on the device) from the embedded corpus, and the step that consumes them. `loader/shards`: the same
from a mixture of five sources of token shards, with the published runs' weights; the shards are made up and
lie in a temporary folder, so the system's file cache holds them.

`fed steps` are steps on the loader's batches, one after the other. Their waits are the time in the iterator's
`next` and in placing the batch while the device has nothing else to do.
"""

import atexit
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hope_jax.cluster.sharding import make_mesh, shard_batch
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_config, pilot_smoke_config
from hope_jax.core.types import Batch
from hope_jax.data.batches import TrainIterator
from hope_jax.data.corpus import HOLDOUT_FRACTION, SPLIT_SALT
from hope_jax.data.inputs import open_inputs
from hope_jax.data.shards import MANIFEST, RowWriter, ShardFile, ShardManifest
from hope_jax.data.tokenizer import Tokenizer, open_tokenizer
from hope_jax.perf.steps import StepRun, changed, step_case
from hope_jax.perf.timing import Case, Comparison

BATCHES, STEPS = 32, 8
"""Of a call of the loader alone, and of the fed step; more than are prefetched, so that a sample shows the
loader's pace."""

ROW_TOKENS, ROWS = 2048, 400
"""Of each made-up source."""


def train_iterator(config: ExperimentConfig) -> TrainIterator:
    """The batches that training would take."""
    return open_inputs(config, open_tokenizer(config.data)).train_iterator()


def loader_case(config: ExperimentConfig, name: str = "loader") -> Case:
    """A call takes `BATCHES` batches, and returns them on the device."""
    iterator, mesh = train_iterator(config), make_mesh(jax.devices()[:1])
    tokens = BATCHES * config.data.batch_size * config.data.seq_len

    def run() -> list[Batch]:
        return [shard_batch(mesh, next(iterator)) for _ in range(BATCHES)]

    return Case(name, run, tokens=tokens)


def fed_case(config: ExperimentConfig) -> Case:
    """A call takes `STEPS` steps, each on the next batch and each to its end, and returns what the last one
    does."""
    step, iterator, waits = StepRun(config), train_iterator(config), [0.0]

    def run() -> Any:
        for _ in range(STEPS):
            started = time.perf_counter()
            batch = jax.block_until_ready(shard_batch(step.mesh, next(iterator)))
            waits[0] += time.perf_counter() - started
            out = jax.block_until_ready(step(batch))
        return out

    tokens = STEPS * config.data.batch_size * config.data.seq_len
    return Case("fed steps", run, tokens=tokens, waited=lambda: waits[0])


def made_up_shards(folder: Path, mixture: dict[str, float], row_tokens: int = ROW_TOKENS) -> None:
    """Shards of random tokens for the embedded tokenizer, one folder a source."""
    tokenizer, rng = Tokenizer.load(), np.random.default_rng(0)
    for name in mixture:
        (folder / name).mkdir()
        files: dict[str, tuple[ShardFile, ...]] = {}
        for split, rows in (("train", ROWS), ("heldout", 2)):
            path = folder / name / f"{split}-00000-of-00001.arrayrecord"
            writer = RowWriter(path, row_tokens=row_tokens, vocab_size=tokenizer.vocab_size, pad_id=0)
            for _ in range(rows):
                writer.add(rng.integers(5, tokenizer.vocab_size, row_tokens))
            files[split] = (writer.close(),)
        manifest = ShardManifest(
            source=name,
            row_tokens=row_tokens,
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            files=files,
            holdout=HOLDOUT_FRACTION,
            salt=SPLIT_SALT,
        )
        (folder / name / MANIFEST).write_text(manifest.to_json())


def _cases(config: ExperimentConfig) -> tuple[Case, ...]:
    return step_case("step", config), loader_case(config), fed_case(config)


def _shard_cases() -> tuple[Case, ...]:
    folder = Path(tempfile.mkdtemp(prefix="hope_jax_loader_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    mixture = pilot_config().data.mixture.to_dict()
    made_up_shards(folder, mixture)
    shards = {"data__source": str(folder), "data__mixture": mixture}
    workers = changed(pilot_smoke_config(), **shards, data__workers=2)
    return *_cases(changed(pilot_smoke_config(), **shards)), loader_case(workers, name="loader, 2 workers")


def comparisons() -> Iterator[Comparison]:
    """The smoke run's, on texts and on shards."""
    yield Comparison("loader/pilot_smoke", partial(_cases, changed(pilot_smoke_config())))
    yield Comparison("loader/shards", _shard_cases)
