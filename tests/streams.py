"""Small models that stream, and rows for them; the same objects in every test, so they compile once."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.stream import Streamer
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from tests.specs import VOCAB, small_spec

CHUNK, TOKENS = 8, 27
CAPACITY = 256
"""Of every stream here unless its growth is tested: another capacity compiles everything again."""

_EVERY_PUSH = ("transformer", "hope_attention", "hope_selfmod", "gated_deltanet")


def variants(*every_push: str) -> list[Any]:
    """All variants, those that are not named nightly."""
    return [pytest.param(v, marks=() if v in every_push else pytest.mark.nightly) for v in BLOCKS]


def cases() -> list[Any]:
    """(variant, style): nightly but for the variants that differ most, in the modern style."""
    return [
        pytest.param(v, s, marks=() if v in _EVERY_PUSH and s == "modern" else pytest.mark.nightly)
        for v in BLOCKS
        for s in ("modern", "reference")
    ]


@cache
def setup(
    variant: str, style: str = "modern", scope: str = "example", dtype: str = "float64"
) -> tuple[Streamer, Any]:
    """Levels, and chunks of self-modifying memories, of half an online chunk and of two."""
    spec = small_spec(
        variant, CHUNK, {"fast": Level(4, 0.2), "slow": Level(16, 0.1)}, style=style,
        own=(4, 2 * CHUNK), own_options={"eta_scale": 0.01, "local_conv_window": 3},
        cms={"flush_partial_at_end": True}, memory={"scope": scope},
        local_conv_window=3, dtype=jnp.dtype(dtype),
    )  # fmt: skip
    model = HopeModel(spec)
    rule = OnlineRule(CHUNK, CHUNK, Teach(), training=False)
    params = jax.jit(model.init_params)(jax.random.key(0))
    return Streamer(model, rule), jax.tree.map_with_path(_moved, params)


def _moved(path: Any, leaf: Any) -> Any:
    """Convolutions start as the identity, which leaves out what they carry from call to call."""
    return leaf + 0.3 if path[-1].key == "conv" else leaf


def rows(batch_size: int = 3, tokens: int = TOKENS) -> dict[str, np.ndarray]:
    """Arguments of `Streamer.feed`: two documents a row, one token in five no target."""
    rng = np.random.default_rng(1)
    shape = (batch_size, tokens)
    return {
        "tokens": rng.integers(0, VOCAB, shape),
        "segment_ids": 1 + (np.arange(tokens) >= rng.integers(5, 20, (batch_size, 1))),
        "target_mask": rng.random(shape) > 0.2,
    }


def part(data: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: array[:, start:stop] for name, array in data.items()}


def run(streamer: Streamer, params: Any, data: dict, split: tuple, capacity: int = CAPACITY) -> tuple:
    """(logits, state, result of finish) of the rows fed in calls of the lengths in `split`."""
    state, at, logits = streamer.begin(params, len(data["tokens"]), capacity), 0, []
    for n in split:
        read, state = streamer.feed(params, state, **part(data, at, at + n))
        logits.append(read)
        at += n
    return np.concatenate(logits, axis=1), state, streamer.finish(params, state)


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-12, single: float = 1e-6) -> None:
    """Equal trees: floats of 64 bits to `tolerance`, shorter ones to `single`, all else exactly."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        near = tolerance if a.dtype == np.float64 else single
        if not jnp.issubdtype(a.dtype, jnp.floating):
            near = 0
        wide = (t.astype(np.float64) for t in (a, b))
        np.testing.assert_allclose(*wide, rtol=near, atol=near, err_msg=jax.tree_util.keystr(path))
