"""Sampling with memories: a stream is fed the prompt, then its own tokens one by one.

Generated tokens are no targets, so teach-driven memories learn from the prompt alone, and self-modifying
ones from all that they read.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.learning.online import OnlineRule
from hope_jax.learning.stream import Streamer
from hope_jax.models.lm import HopeModel
from hope_jax.types import Array, PyTree

Generate = Callable[[PyTree, PyTree | None, np.ndarray, int, float, int], np.ndarray]

_CHUNK_WITHOUT_MEMORIES = 16


def make_generate(model: HopeModel, rule: OnlineRule) -> Generate:
    """(params, fast, prompt int32 [P], max_tokens, temperature, seed) -> int32 [max_tokens].

    fast: memories to start from, of a batch of one; None: empty ones. temperature 0 takes the likeliest
    token. Compiles once per capacity: the total length, rounded up to a power of two times the chunk.

    Raises (the returned function):
      ValueError: an empty prompt.
    """
    size = rule.chunk_size
    if not model.level_names():
        # Nothing is written, so the chunk only says how many tokens are read again for each new one.
        size = min(size, _CHUNK_WITHOUT_MEMORIES)
        model = HopeModel(model.spec._replace(chunk_size=size))
    streamer = Streamer(model, rule._replace(chunk_size=size, truncate=size, training=False))

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
        chunks = -(-(len(prompt) + max_tokens) // size)
        state = streamer.begin(params, 1, size * 2 ** (chunks - 1).bit_length(), fast)
        logits, state = streamer.feed(params, state, np.asarray(prompt, np.int32)[None])
        key, drawn = jax.random.key(seed), np.zeros(max_tokens, np.int32)
        for at in range(max_tokens):
            key, this = jax.random.split(key)
            drawn[at] = draw(logits[0, -1], jnp.asarray(temperature), this)
            if at + 1 < max_tokens:
                token, no_target = drawn[None, at : at + 1], np.zeros((1, 1), bool)
                logits, state = streamer.feed(params, state, token, target_mask=no_target)
        return drawn

    return generate
