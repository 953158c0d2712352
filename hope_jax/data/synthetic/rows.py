"""A synthetic task as rows: one string each, found by number, so that the state of training is one number."""

import dataclasses
import hashlib
import json

import grain
import numpy as np

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.data.batches import ENDLESS, Stream, digest_int, host_batch, spread
from hope_jax.data.synthetic.task import TRAIN, Example, Task

HELD_OUT_ROWS = 1024
"""Strings of a whole held-out split (`eval.batches=0`) of a task that has no end of them."""


def drawn(task: Task, split: str, seed: int | str, row: int) -> Example:
    """String `row` of a split; it depends on these four alone."""
    key = digest_int(f"{seed}:{_describe(task)}:{split}")
    return task.example(np.random.default_rng([key, int(row)]), split)


def strings(task: Task, split: str, count: int, seed: int | str) -> list[Example]:
    """Strings of a split to evaluate on: all if the task has few, and then `count` of them, evenly spread,
    if they are more; else the first `count` that `seed` draws."""
    every = task.every(split)
    if every is None:
        return [drawn(task, split, seed, row) for row in range(count)]
    return [every[int(i)] for i in spread(min(count, len(every)), len(every))]


def padded(example: Example, seq_len: int) -> Batch:
    """A string of at most `seq_len` tokens as a Batch of int32 [T] arrays; padding has segment 0."""
    room = (0, seq_len - len(example.tokens))
    return host_batch(
        tokens=np.pad(example.tokens, room).astype(np.int32),
        targets=np.pad(example.targets, room, constant_values=NO_TARGET).astype(np.int32),
        segment_ids=np.pad(np.ones(len(example.tokens), np.int32), room),
    )


def training_rows(task: Task, *, seq_len: int, batch_size: int, seed: int) -> Stream:
    """Endless rows of new strings."""
    digest = hashlib.sha256(f"{_describe(task)} {seq_len} {batch_size} {seed}".encode()).hexdigest()
    rows = grain.MapDataset.range(ENDLESS)
    return Stream(rows.map(lambda row: padded(drawn(task, TRAIN, seed, row), seq_len)), digest)


def held_out_rows(task: Task, *, seq_len: int, batch_size: int, max_batches: int, seed: int) -> list[Batch]:
    """Strings of the split that is most like training, at most `max_batches` batches (0: a fixed number)."""
    drawn = strings(task, task.splits[0], max_batches * batch_size or HELD_OUT_ROWS, seed)
    return [padded(example, seq_len) for example in drawn]


def _describe(task: Task) -> str:
    """The task and all its options in one line."""
    return f"{type(task).__name__} {json.dumps(dataclasses.asdict(task), sort_keys=True)}"
