"""Decoding token by token: the logits of the parallel read, and draws that calls do not change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning.sampling import Drawn, continue_stream, draw, generate, roomy
from tests.streams import CHUNK, TOKENS, VOCAB, assert_same, part, rows, setup, variants

PROMPT, ROOM = 10, 4 * CHUNK


def prompted(variant: str, **options: Any) -> tuple:
    """A stream of one document, fed PROMPT tokens."""
    streamer, params = setup(variant)
    data = {**rows(1), "segment_ids": np.full((1, TOKENS), 3)}
    _, state = streamer.feed(params, streamer.begin(params, 1, ROOM), **part(data, 0, PROMPT))
    return streamer, params, data, state


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("variant", variants("transformer"))
def test_decoding_equals_the_parallel_read_under_the_same_mask(variant: str, targets: bool) -> None:
    streamer, params, data, state = prompted(variant)
    count = 12
    drawn = list(
        continue_stream(streamer, params, state, max_tokens=count, temperature=1.0, seed=5, targets=targets)
    )
    tokens = np.concatenate([data["tokens"][:, :PROMPT], [[d.token for d in drawn]]], axis=1)
    mask = np.concatenate([data["target_mask"][:, :PROMPT], np.full((1, count), targets)], axis=1)
    whole, after = streamer.feed(
        params, streamer.begin(params, 1, ROOM), tokens, np.full(tokens.shape, 3), mask
    )
    logits = np.stack([d.logits for d in drawn])
    assert_same(logits, np.asarray(whole)[0, PROMPT - 1 : -1])
    assert_same(drawn[-1].state, after)
    assert len({d.token for d in drawn}) > 3


def test_draws_depend_on_seed_and_position_alone() -> None:
    streamer, params, _, state = prompted("transformer")

    def drawn(state: Any, count: int, seed: int = 5) -> list[Drawn]:
        steps = continue_stream(streamer, params, state, max_tokens=count, temperature=1.0, seed=seed)
        return list(steps)

    at_once = drawn(state, 12)
    first = drawn(state, 5)
    second = drawn(first[-1].state, 7)
    assert [d.token for d in [*first, *second]] == [d.token for d in at_once]
    assert_same([d.logits for d in [*first, *second]], [d.logits for d in at_once], 0)
    assert_same(second[-1].state, at_once[-1].state, 0, 0)
    for at, d in enumerate(at_once, PROMPT):
        assert d.token == int(draw(d.logits, jnp.float32(1), jnp.uint32(5), jnp.int32(at)))
    assert [d.token for d in drawn(state, 12, seed=6)] != [d.token for d in at_once]
    assert [d.token for d in drawn(state, 12, seed=5 + 2**32)] == [d.token for d in at_once]
    assert not drawn(state, 0)


def test_draws_follow_the_softmax_of_the_tempered_logits() -> None:
    logits = jnp.asarray([0.0, 1.0, 2.0])
    positions = jnp.arange(4000)

    def shares(temperature: float) -> np.ndarray:
        draws = jax.vmap(lambda at: draw(logits, jnp.float32(temperature), jnp.uint32(0), at))(positions)
        return np.bincount(draws, minlength=3) / len(positions)

    np.testing.assert_allclose(shares(1.0), jax.nn.softmax(logits), atol=0.03)
    np.testing.assert_allclose(shares(0.5), jax.nn.softmax(2 * logits), atol=0.03)
    np.testing.assert_array_equal(shares(0.0), [0, 0, 1])


def test_capacities_are_few() -> None:
    streamer, _ = setup("transformer")
    wanted = {0: 8, 1: 8, 8: 8, 9: 16, 16: 16, 17: 32, 33: 64, 64: 64}
    assert {tokens: roomy(streamer, tokens) for tokens in wanted} == wanted


def test_the_sampler_draws_what_a_stream_draws() -> None:
    streamer, params = setup("transformer")
    prompt = np.arange(5) % VOCAB

    def drawn(prompt: np.ndarray, count: int) -> np.ndarray:
        return generate(streamer, params, None, prompt, max_tokens=count, temperature=0.7, seed=1)

    _, state = streamer.feed(params, streamer.begin(params, 1, ROOM), prompt[None])
    wanted = list(continue_stream(streamer, params, state, max_tokens=20, temperature=0.7, seed=1))
    got = drawn(prompt, 20)
    assert got.dtype == np.int32 and got.tolist() == [d.token for d in wanted]
    assert drawn(prompt, 0).shape == (0,)
    with pytest.raises(ValueError, match="prompt: want at least one token"):
        drawn(prompt[:0], 4)


@pytest.mark.parametrize("prompt_tokens", [3, 2 * CHUNK + 1])
def test_the_samplers_states_take_each_others_place_and_spare_the_given_memories(prompt_tokens: int) -> None:
    streamer, params = setup("hope_attention")
    fast = streamer.model.init_fast_state(params, 1)
    prompt = np.arange(prompt_tokens) % VOCAB
    rule = {"max_tokens": 20, "temperature": 0.7, "seed": 1}
    first, again = (generate(streamer, params, fast, prompt, **rule) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    state = streamer.begin(params, 1, ROOM, jax.tree.map(jnp.copy, fast))
    held = state.carry.cache[0]["attn"].key
    streamer.feed(params, state, np.arange(CHUNK + 1)[None] % VOCAB, in_place=True)
    assert held.is_deleted() and not jax.tree.leaves(fast)[0].is_deleted()
