"""What a row's document is read as, and what it teaches, does not depend on the documents before it.

Their tokens are exchanged. Memories go on across documents by design, so those before the last have no
targets, and memories that write while they read are idle.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.learning import modes
from hope_jax.learning.chunk import OnlineRule, State, begin, step
from hope_jax.learning.stream import Streamer
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from tests.specs import small_spec

CHUNK, TOKENS, VOCAB, WINDOW = 4, 18, 11, 6
"""The convolution's window is longer than a chunk, and than some documents."""
SEGMENTS = np.array([[1] * 5 + [2] * 2 + [3] * 11, [1] + [0] + [2] * 3 + [1] + [4] * 2 + [3] * 10])
LAST = SEGMENTS == 3
QUICK = {"xla_backend_optimization_level": 0}
DOUBLE = jnp.dtype("float64")
MODES = {"online": CHUNK, "online_2n": 2 * CHUNK, "through_writes": CHUNK}
"""K by mode."""

DAILY = {
    ("hope_attention", "reference", WINDOW, "batch"),
}
DAILY_MODES = {
    ("hope_attention", "modern", WINDOW, "online"),
    ("transformer", "reference", WINDOW, "through_writes"),
}
STREAMED = {("transformer", "modern", WINDOW)}


def cases(daily: set[Any], *last: Any) -> list[Any]:
    """Variants, styles and windows, with each of `last`; nightly but for those in `daily`."""
    return [
        pytest.param(*case, *more, marks=() if (*case, *more) in daily else pytest.mark.nightly)
        for case in [(v, s, w) for v in BLOCKS for s in ("modern", "reference") for w in (0, WINDOW)]
        for more in ([(one,) for one in last] or [()])
    ]


@cache
def setup(variant: str, style: str, window: int, scope: str = "example") -> tuple[HopeModel, Any]:
    """A model and parameters of which every leaf is moved: convolutions, for one, start as the identity."""
    model = HopeModel(
        small_spec(
            variant, CHUNK, {"fast": Level(2, 0.2), "slow": Level(8, 0.1)}, style=style,
            local_conv_window=window, dtype=DOUBLE, memory={"scope": scope},
            own_options={"eta_scale": 0.0, "use_alpha": False, "local_conv_window": window},
            cms={"flush_partial_at_end": True},
        )
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.jit(model.init_params, compiler_options=QUICK)(jax.random.key(0))
    return model, jax.tree.map(lambda p: p + 0.1 * jnp.asarray(rng.normal(size=p.shape)), params)


def rows(seed: int, segments: np.ndarray, *, taught: bool) -> Batch:
    """The last documents are the same for all seeds. taught: the documents before them have targets too."""
    tokens = np.random.default_rng(9).integers(0, VOCAB, LAST.shape)
    tokens = np.where(LAST, tokens, np.random.default_rng(seed).integers(0, VOCAB, LAST.shape))
    targets = np.roll(tokens, -1, axis=1)
    follows = (np.roll(SEGMENTS, -1, axis=1) == SEGMENTS) & (SEGMENTS > 0) & (taught | LAST)
    follows[:, -1] = False
    targets = np.where(follows, targets, NO_TARGET)
    return Batch(*(jnp.asarray(t, jnp.int32) for t in (tokens, targets, segments)))


def difference(a: Any, b: Any) -> float:
    """The largest of all leaves."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in leaves)


def of_last(per_token: Any) -> list[np.ndarray]:
    """The values at the last documents' tokens, of leaves [..., B, T] or [..., B, T, D]."""
    size = LAST.shape
    return [
        np.asarray(t)[..., LAST] if t.shape[-2:] == size else np.asarray(t)[..., LAST, :]
        for t in jax.tree.leaves(per_token)
    ]


def assert_independent(run: Any, window: int) -> None:
    """run: of segments and seed. One document of all tokens shows that they could have reached the last."""
    assert difference(run(SEGMENTS, 1), run(SEGMENTS, 2)) < 1e-12
    if window:
        ones = np.ones_like(SEGMENTS)
        assert difference(run(ones, 1), run(ones, 2)) > 1e-4


@pytest.mark.parametrize(("variant", "style", "window", "scope"), cases(DAILY, "example", "batch"))
def test_a_document_is_read_and_taught_alone(variant: str, style: str, window: int, scope: str) -> None:
    """In one chunk (`two_pass`): hidden states and teach signals where all documents are taught; outer
    gradient and writes where the last is."""
    model, params = setup(variant, style, window, scope)
    rule = OnlineRule(
        TOKENS, TOKENS, Teach(scale=1.0, normalize="batch_mean" if style == "reference" else "token")
    )

    @partial(jax.jit, compiler_options=QUICK)
    def whole(batch: Batch) -> Any:
        fast = model.init_fast_state(params, len(batch.tokens))
        start, one = begin(model, fast, len(batch.tokens), None), jnp.ones(())
        read = step(model, rule, model.unstacked(params), None, start, batch, one)
        signals = [(layer.block, layer.own, layer.surprise_n) for layer in read.signal]
        return (read.out.hidden, signals), modes.two_pass(model, rule, params, fast, batch, one)

    def run(segments: np.ndarray, seed: int) -> Any:
        seen, _ = whole(rows(seed, segments, taught=True))
        return of_last(seen), whole(rows(seed, segments, taught=False))[1]

    assert_independent(run, window)


@pytest.mark.parametrize(("variant", "style", "window", "mode"), cases(DAILY_MODES, *MODES))
def test_a_document_teaches_alone_in_chunks(variant: str, style: str, window: int, mode: str) -> None:
    """Outer gradient, loss, memories and their statistics."""
    model, params = setup(variant, style, window)
    rule = OnlineRule(CHUNK, MODES[mode], Teach(scale=1.0))
    of_mode = modes.through_writes if mode == "through_writes" else modes.online

    def run(batch: Batch) -> tuple[Any, State]:
        fast = model.init_fast_state(params, len(batch.tokens))
        return of_mode(model, rule, params, fast, batch, jnp.ones(()))

    compiled = jax.jit(run, compiler_options=QUICK)
    assert_independent(lambda segments, seed: compiled(rows(seed, segments, taught=False)), window)


@pytest.mark.parametrize(("variant", "style", "window"), cases(STREAMED))
def test_a_document_is_streamed_alone(variant: str, style: str, window: int) -> None:
    """In calls that end anywhere, logits and memories at the stream's end are those of one call."""
    model, params = setup(variant, style, window)
    streamer = Streamer(model, OnlineRule(CHUNK, CHUNK, Teach(scale=1.0), training=False))

    def run(segments: np.ndarray, seed: int, *lengths: int) -> Any:
        batch = rows(seed, segments, taught=False)
        given = np.asarray(batch.tokens), segments, LAST
        state, at, logits = streamer.begin(params, len(segments), 32), 0, []
        for n in lengths or (TOKENS,):
            read, state = streamer.feed(params, state, *(t[:, at : at + n] for t in given))
            logits.append(read)
            at += n
        return of_last(np.concatenate(logits, axis=1)), streamer.finish(params, state)

    assert_independent(run, window)
    whole = run(SEGMENTS, 1)
    for seed in (1, 2):
        ends = np.sort(np.random.default_rng(seed).integers(0, TOKENS + 1, 5))
        assert difference(run(SEGMENTS, seed, *np.diff([0, *ends, TOKENS]).tolist()), whole) < 1e-12
