"""A synthetic task as rows: one string each, found by number, so that the state of training is one number."""

import dataclasses
import hashlib
import json
from typing import Unpack

import grain
import numpy as np

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.data.batches import (
    ENDLESS,
    Sharing,
    TrainIterator,
    digest_int,
    fixed_batches,
    host_batch,
    shared_batches,
)
from hope_jax.data.synthetic.task import TRAIN, Example, Task

HELD_OUT_ROWS = 1024
"""Strings of a whole held-out split (`eval.batches=0`) of a task that has no end of them."""


class Strings:
    """The strings of a split, by number: a grain random-access source of one-row batches.

    Row r depends on (seed, task, split, r) alone. seq_len: tokens of a row; padding has segment 0.
    """

    def __init__(self, task: Task, split: str, seed: int | str, seq_len: int) -> None:
        self._task, self._split, self._seq_len = task, split, seq_len
        self._key = digest_int(f"{seed}:{describe(task)}:{split}")

    def __len__(self) -> int:
        return ENDLESS

    def example(self, row: int) -> Example:
        """String `row`."""
        return self._task.example(np.random.default_rng([self._key, int(row)]), self._split)

    def __getitem__(self, row: int) -> Batch:
        """String `row` as a Batch of int32 [T] arrays."""
        return as_row(self.example(row), self._seq_len)


def describe(task: Task) -> str:
    """The task and all its options in one line."""
    return f"{type(task).__name__} {json.dumps(dataclasses.asdict(task), sort_keys=True)}"


def as_row(example: Example, seq_len: int) -> Batch:
    """A string of at most `seq_len` tokens as a Batch of int32 [T] arrays."""
    room = (0, seq_len - len(example.tokens))
    return host_batch(
        tokens=np.pad(example.tokens, room).astype(np.int32),
        targets=np.pad(example.targets, room, constant_values=NO_TARGET).astype(np.int32),
        segment_ids=np.pad(np.ones(len(example.tokens), np.int32), room),
    )


def strings(task: Task, split: str, count: int, seed: int | str) -> list[Example]:
    """Strings of a split to evaluate on: all if the task has few, and then `count` of them, evenly spread,
    if they are more; else the first `count` that `seed` draws."""
    every = task.every(split)
    if every is None:
        source = Strings(task, split, seed, 0)
        return [source.example(row) for row in range(count)]
    chosen = np.arange(min(count, len(every))) * len(every) // max(min(count, len(every)), 1)
    return [every[int(i)] for i in chosen]


def make_synthetic_iterator(
    *,
    task: Task,
    seq_len: int,
    batch_size: int,
    seed: int,
    **sharing: Unpack[Sharing],
) -> TrainIterator:
    """Endless batches of new strings. Arguments as of `hope_jax.data.pipeline.make_train_iterator`.

    Raises:
        DataError: the processes do not divide the batch.
    """
    stream = f"{describe(task)} {seq_len} {batch_size} {seed}"
    return shared_batches(
        grain.MapDataset.source(Strings(task, TRAIN, seed, seq_len)),
        hashlib.sha256(stream.encode()).hexdigest(),
        batch_size=batch_size,
        **sharing,
    )


def make_synthetic_eval_batches(
    *, task: Task, seq_len: int, batch_size: int, max_batches: int, seed: int
) -> list[Batch]:
    """Strings of the task's first split as batches of int32 [B, T], the same on every call; max_batches: at
    most; 0: the whole split, or `HELD_OUT_ROWS` of it."""
    count = max_batches * batch_size or HELD_OUT_ROWS
    chosen = strings(task, task.splits[0], count, seed)
    return fixed_batches([as_row(example, seq_len) for example in chosen], batch_size, pad_id=0)
