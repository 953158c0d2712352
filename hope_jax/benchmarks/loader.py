"""The data pipeline's own pace beside the training step of `configs/pilot_smoke.py`.

`loader/pilot_smoke`: batches as training takes them (shuffled, packed, batched and prefetched by grain, then
placed on the device) from the embedded corpus, and the step that consumes them. The goal is five times the
step's tokens/s, so that the device never waits.
"""

from collections.abc import Iterator
from functools import partial

import jax

from hope_jax.benchmarks.runs import step_case
from hope_jax.config import ExperimentConfig
from hope_jax.config_check import document_multiple
from hope_jax.config_schema import resolve
from hope_jax.data.corpus import load_documents, split_documents
from hope_jax.data.pipeline import TrainIterator, make_train_iterator
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.presets import pilot_smoke_config
from hope_jax.timing import Case, Comparison, Goal
from hope_jax.training.sharding import make_mesh, shard_batch
from hope_jax.types import Batch

TIMES = 5.0
BATCHES = 32
"""Batches of a call; more than are prefetched, so that a sample is not of those alone."""


def train_iterator(config: ExperimentConfig) -> TrainIterator:
    """The batches that training would take."""
    documents, _ = split_documents(load_documents(config.data.source))
    return make_train_iterator(
        documents=documents,
        tokenizer=Tokenizer.load(config.data.tokenizer),
        seq_len=config.data.seq_len,
        batch_size=config.data.batch_size,
        document_multiple=document_multiple(config),
        seed=config.train.seed,
        prefetch=config.data.prefetch,
    )


def loader_case(config: ExperimentConfig, goals: tuple[Goal, ...] = ()) -> Case:
    """A call takes `BATCHES` batches, and returns them on the device."""
    iterator, mesh = train_iterator(config), make_mesh(jax.devices()[:1])
    tokens = BATCHES * config.data.batch_size * config.data.seq_len

    def run() -> list[Batch]:
        return [shard_batch(mesh, next(iterator)) for _ in range(BATCHES)]

    return Case("loader", run, tokens=tokens, goals=goals)


def _cases(config: ExperimentConfig) -> tuple[Case, ...]:
    goal = (Goal("tokens_ratio", TIMES),)
    return step_case("step", config), loader_case(config, goal)


def comparisons() -> Iterator[Comparison]:
    """The smoke run's."""
    yield Comparison("loader/pilot_smoke", partial(_cases, resolve(pilot_smoke_config().to_dict())))
