"""Sampling with memories: a stream is fed its own tokens one by one.

The draw of a token depends on the seed and the token's position in its context, not on calls: a stream that
is saved, loaded and continued draws what it would have drawn in one go.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Array, PyTree
from hope_jax.learning.stream import Stream, Streamer


class Drawn(NamedTuple):
    """A drawn token, the logits [V] that it was drawn from, and the state after it has been fed."""

    token: int
    logits: Array
    state: Stream


@jax.jit
def draw(logits: Array, temperature: Array, seed: Array, position: Array) -> Array:
    """The token int32 [] at `position` (int [], from 0) from logits [V]: its key is
    fold_in(key(seed), position). seed: uint32 []. temperature 0 takes the likeliest."""
    key = jax.random.fold_in(jax.random.key(seed), position)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, logits.argmax()).astype(jnp.int32)


def continue_stream(
    streamer: Streamer,
    params: PyTree,
    state: Stream,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    targets: bool = False,
    in_place: bool = False,
) -> Iterator[Drawn]:
    """Draws `max_tokens` tokens of a stream of batch size one, and feeds each before the next is drawn.

    seed: modulo 2**32. targets: drawn tokens are targets, so teach-driven memories learn from them;
    else only memories that write while they read do. They belong to the document of the last token.
    in_place: each state takes the place of the one before it, `state` first: none but the last can be used.

    Raises:
      ValueError: nothing has been read.
    """
    heat, seed_u32 = jnp.asarray(temperature, jnp.float32), jnp.asarray(seed % 2**32, jnp.uint32)
    logits = streamer.last_logits(params, state)[0]
    segment = state.recent.segment_ids[:, -1:]
    for _ in range(max_tokens):
        token = np.asarray(draw(logits, heat, seed_u32, jnp.asarray(state.position, jnp.int32)))
        read, state = streamer.feed(
            params,
            state,
            token[None, None],
            segment_ids=segment,
            target_mask=np.full((1, 1), targets),
            in_place=in_place,
        )
        yield Drawn(int(token), logits, state)
        logits = read[0, -1]


def roomy(streamer: Streamer, tokens: int) -> int:
    """A capacity for `tokens` tokens: the chunk times a power of two, so that few sizes are compiled."""
    size = streamer.rule.chunk_size
    return size * 2 ** (max(1, -(-tokens // size)) - 1).bit_length()


def generate(
    streamer: Streamer,
    params: PyTree,
    fast: PyTree | None,
    prompt: np.ndarray,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """int32 [max_tokens] after a prompt int32 [P], whose tokens are targets; the drawn ones are not.

    fast: memories to start from, of a batch of one; None: empty ones. Compiles once per capacity (`roomy`).

    Raises:
      ValueError: an empty prompt.
    """
    if not len(prompt):
        raise ValueError("prompt: want at least one token, got none")
    own = jax.tree.map(jnp.copy, fast)
    state = streamer.begin(params, 1, roomy(streamer, len(prompt) + max_tokens), own)
    _, state = streamer.feed(params, state, np.asarray(prompt, np.int32)[None])
    rule: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    steps = continue_stream(streamer, params, state, **rule, in_place=True)
    return np.array([drawn.token for drawn in steps], np.int32)
