"""What a token of a stream costs at its position: `configs/pilot_smoke.py` with a window of 512 tokens, one
stream, read and written in place as evaluations do.

`stream/positions` compares 4,096 tokens that end at position 4,096 with as many that end at 65,536.
`stream/million` reads 1,048,576 tokens once, in sixteen parts, each a case; after each it prints the most
memory that the process has had. Take it with --rounds=1: a round is the whole stream.
"""

import resource
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import assemble
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_smoke_config
from hope_jax.core.output import say
from hope_jax.core.types import Batch
from hope_jax.learning.stream import BLOCK
from hope_jax.perf.steps import changed
from hope_jax.perf.timing import Case, Comparison

WINDOW, NEAR, FAR, PARTS = 512, 2**12, 2**16, 16


class StreamRun:
    """A stream of random tokens with room for `capacity`, read in calls of `tokens`."""

    def __init__(self, config: ExperimentConfig, capacity: int) -> None:
        streamer = assemble.streamer(config)
        params = jax.jit(streamer.model.init_params)(jax.random.key(0))
        self._params, self._state = params, streamer.begin(params, 1, capacity)
        self.tokens = BLOCK * streamer.rule.chunk_size
        shape, vocabulary = (1, self.tokens + 1), config.model.vocab_size
        row: Any = np.random.default_rng(0).integers(0, vocabulary, shape, dtype=np.int32)
        self._batch = Batch(row[:, :-1], row[:, 1:], np.ones_like(row[:, 1:]))
        write = type(streamer).write_chunks_in_place
        self._write = write.lower(streamer, params, self._state, self._batch).compile()

    def __call__(self, start: int, stop: int) -> Any:
        """Reads from position `start` to `stop`, wherever the stream stood before; the last call's logits."""
        carry = self._state.carry._replace(position=jnp.asarray(start, jnp.int32))
        self._state = self._state._replace(carry=carry)
        for _ in range(start, stop, self.tokens):
            logits, self._state = self._write(self._params, self._state, self._batch)
        return jax.block_until_ready(logits)

    @property
    def position(self) -> int:
        """Where it stands."""
        return int(self._state.carry.position)


def windowed() -> ExperimentConfig:
    """What is streamed."""
    return changed(pilot_smoke_config(), model__sliding_window=WINDOW)


def _most_memory() -> float:
    """MiB that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _positions() -> tuple[Case, ...]:
    """Each with a cache that its position needs."""
    runs = {stop: StreamRun(windowed(), stop) for stop in (NEAR, FAR)}
    return tuple(
        Case(f"to {stop:,}", partial(run, stop - NEAR, stop), tokens=NEAR) for stop, run in runs.items()
    )


def _million() -> tuple[Case, ...]:
    run = StreamRun(windowed(), PARTS * FAR)

    def part(stop: int) -> Any:
        out = run(stop - FAR, stop)
        say(f"  {stop:>9,} tokens: {_most_memory():,.0f} MiB at most")
        return out

    stops = [FAR * (i + 1) for i in range(PARTS)]
    return tuple(Case(f"to {stop:,}", partial(part, stop), tokens=FAR, single=True) for stop in stops)


def comparisons() -> Iterator[Comparison]:
    """Near and far in turns, and a long stream once."""
    yield Comparison("stream/positions", _positions)
    yield Comparison("stream/million", _million)
