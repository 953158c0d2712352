"""Sampling with memories: the prompt is read and written in online chunks, then tokens are drawn one by one.

Tokens are read as they come with the memories of their chunk's start. When the token after a chunk is
known, the chunk is read again, its teach signal taken and its memories written. Generated tokens are no
targets, so teach-driven memories learn from the prompt alone.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.learning import online
from hope_jax.learning.online import OnlineRule, StreamState
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.types import NO_TARGET, Array, Batch, PyTree

Generate = Callable[[PyTree, PyTree | None, np.ndarray, int, float, int], np.ndarray]


def make_generate(model: HopeModel, rule: OnlineRule) -> Generate:
    """(params, fast, prompt int32 [P], max_tokens, temperature, seed) -> int32 [max_tokens].

    fast: memories to start from, of a batch of one; None: empty ones. temperature 0 takes the likeliest
    token. Compiles once per capacity: the total length, rounded up to a power of two times the chunk.

    Raises (the returned function):
      ValueError: an empty prompt.
    """
    rule = rule._replace(training=False)
    size = rule.chunk_size

    @partial(jax.jit, static_argnums=1)
    def begin(params: PyTree, capacity: int, fast: PyTree | None) -> StreamState:
        start = model.init_fast_state(params, 1) if fast is None else fast
        return online.begin(model, rule, start, 1, capacity)

    @jax.jit
    def write_chunk(params: PyTree, state: StreamState, chunk: Batch) -> StreamState:
        taught = online.read_chunk(model, rule, params, state, chunk, jnp.ones(()))
        fast, _ = model.write(params, taught.fast, *taught.pending)
        return taught._replace(fast=fast)

    @jax.jit
    def read_token(params: PyTree, fast: PyTree, carry: Carry, token: Array) -> tuple[Array, Carry]:
        out = model.read(params, fast, carry, token[None, None], jnp.ones((1, 1), jnp.int32))
        assert out.carry is not None
        return out.logits[0, 0], out.carry

    @jax.jit
    def draw(logits: Array, temperature: Array, key: Array) -> Array:
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, drawn, logits.argmax()).astype(jnp.int32)

    def generate(
        params: PyTree,
        fast: PyTree | None,
        prompt: np.ndarray,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> np.ndarray:
        if not len(prompt):
            raise ValueError("prompt: want at least one token, got none")
        known, tokens, key = len(prompt), [int(t) for t in prompt], jax.random.key(seed)
        chunks = -(-(known + max_tokens) // size)
        state = begin(params, size * 2 ** (chunks - 1).bit_length(), fast)
        carry = state.carry
        for at in range(known + max_tokens - 1):
            logits, carry = read_token(params, state.fast, carry, jnp.asarray(tokens[at]))
            if at + 1 >= known:
                key, this = jax.random.split(key)
                tokens.append(int(draw(logits, jnp.asarray(temperature), this)))
            if (at + 1) % size == 0:
                state = write_chunk(params, state, _chunk(tokens, at + 1 - size, size, known))
                carry = state.carry
        return np.asarray(tokens[known:], np.int32)

    return generate


def _chunk(tokens: list[int], start: int, size: int, known: int) -> Batch:
    """The chunk at `start`, whose targets are those of the first `known` tokens."""
    targets = [t if start + 1 + i < known else NO_TARGET for i, t in enumerate(tokens[start + 1 :][:size])]
    row = jnp.asarray([tokens[start : start + size]], jnp.int32)
    return Batch(row, jnp.asarray([targets], jnp.int32), jnp.ones_like(row))
