"""A sliding window's ring of keys and values against the whole cache under the window's mask."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.learning import modes
from hope_jax.learning.sampling import continue_stream
from hope_jax.learning.stream import Streamer
from hope_jax.models.attention import cached_positions
from hope_jax.models.lm import HopeModel
from hope_jax.storage.memory_file import load_memory, owner_of, save_memory
from tests.streams import CHUNK, assert_same, part, rows, run, setup

TOKENS, CAPACITY = 45, 64
WINDOWS = [5, *(pytest.param(window, marks=pytest.mark.nightly) for window in (1, CHUNK, 13))]


def windowed(variant: str, window: int, **changes: Any) -> tuple[Streamer, Any]:
    streamer, params = setup(variant)
    model = HopeModel(replace(streamer.model.spec, sliding_window=window, **changes))
    return Streamer(model, streamer.rule), params


class WholeModel(HopeModel):
    """Keeps all keys and values."""

    def init_carry(self, batch_size: int, capacity: int) -> Any:
        return HopeModel(replace(self.spec, sliding_window=0)).init_carry(batch_size, capacity)


def whole(streamer: Streamer) -> Streamer:
    return Streamer(WholeModel(streamer.model.spec), streamer.rule)


@pytest.mark.parametrize("position", [0, 1, 4, 5, 6, 23])
def test_a_row_holds_the_last_token_that_entered_it(position: int) -> None:
    held = np.full(5, -1)
    for token in range(position):
        held[token % 5] = token
    got = np.asarray(cached_positions(jnp.int32(position), 5))
    np.testing.assert_array_equal(np.maximum(got, -1), held)


@pytest.mark.parametrize("window", WINDOWS)
def test_any_calls_read_what_the_whole_cache_reads(window: int) -> None:
    """Calls longer than the ring too, and documents that cut the window."""
    streamer, params = windowed("transformer", window)
    data = {name: np.asarray(values, np.int32) for name, values in rows(tokens=TOKENS).items()}
    wanted = None
    for model, split in (
        (whole(streamer).model, (45,)),
        (streamer.model, (45,)),
        (streamer.model, (3, 1, 20, 6, 15)),
    ):
        carry, at, pieces = model.init_carry(3, CAPACITY), 0, []
        for n in split:
            here = slice(at, at + n)
            out = jax.jit(model.read)(
                params, {}, carry, data["tokens"][:, here], data["segment_ids"][:, here]
            )
            carry, at = out.carry, at + n
            pieces.append(out.hidden)
        wanted = pieces[0] if wanted is None else wanted
        assert_same(jnp.concatenate(pieces, axis=1), wanted, 1e-9)
    rows_held = carry.cache[0]["attn"].key.shape[1]
    assert rows_held == window + CHUNK and carry.segments.shape == (3, CAPACITY)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", ["hope_attention", "hope_hybrid"])
def test_streams_in_any_calls_are_those_of_the_whole_cache(variant: str) -> None:
    streamer, params = windowed(variant, 5)
    data = rows(tokens=TOKENS)
    logits, _, result = run(whole(streamer), params, data, (TOKENS,), CAPACITY)
    for split, capacity in (((TOKENS,), CAPACITY), ((3, 1, 20, 6, 15), CAPACITY), ((20, 25), 1)):
        got = run(streamer, params, data, split, capacity)
        assert_same((got[0], got[2]), (logits, result), 1e-9)


@pytest.mark.parametrize(
    ("cut", "reset"),
    [pytest.param(*case, marks=pytest.mark.nightly) for case in ((1, True), (2, False), (2, True))],
)
def test_training_gradients_are_those_of_the_whole_cache(cut: int, reset: bool) -> None:
    streamer, params = windowed("hope_attention", 5, reset_at_document=reset)
    rule = streamer.rule._replace(truncate=cut * CHUNK)
    data = rows(2, TOKENS)
    begins = np.arange(TOKENS) >= 2 * CHUNK
    segments = np.where(begins, 2, 1) + np.zeros((2, 1), int) if reset else data["segment_ids"]
    targets = np.roll(data["tokens"], -1, axis=1)
    targets[:, -1] = NO_TARGET
    batch = Batch(*(jnp.asarray(t, jnp.int32) for t in (data["tokens"], targets, segments)))

    def gradients(model: HopeModel) -> Any:
        def run(params: Any, batch: Batch) -> Any:
            fast = model.init_fast_state(params, 2)
            return modes.online(model, rule, params, fast, batch, jnp.ones(()))

        return jax.jit(run)(params, batch)

    assert_same(gradients(streamer.model), gradients(whole(streamer).model), 1e-9)


@pytest.mark.nightly
def test_resets_saved_memories_and_drawn_tokens(tmp_path: Any) -> None:
    """A stream of two documents, saved beyond the ring's length, loaded, and continued by its own draws."""
    streamer, params = windowed("hope_attention", 5, reset_at_document=True)
    data = rows(1, TOKENS)
    data["segment_ids"] = np.where(np.arange(TOKENS) >= 2 * CHUNK, 2, 1)[None]
    ends = []
    for each in (streamer, whole(streamer)):
        _, state = each.feed(params, each.begin(params, 1, CAPACITY), **part(data, 0, 30))
        if each is streamer:
            owner = owner_of(each, params)
            save_memory(tmp_path / "a", each, state, owner)
            state = load_memory(tmp_path / "a", each, params, owner)
            assert state.carry.cache[0]["attn"].key.shape[1] == 5 + CHUNK
        drawn = list(continue_stream(each, params, state, max_tokens=20, temperature=1.0, seed=3))
        ends.append(([d.token for d in drawn], drawn[-1].logits, drawn[-1].state.fast))
    assert_same(ends[0], ends[1], 1e-9)


def test_a_long_stream_keeps_a_ring() -> None:
    streamer, params = windowed("transformer", 5)
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(
            lambda p, n=n: streamer.begin(p, 1, n).carry.cache, params)))
        for n in (2 * CHUNK, 100 * CHUNK)
    ]  # fmt: skip
    assert sizes[0] == sizes[1]
