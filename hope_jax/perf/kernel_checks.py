"""Every kernel as a name, a function and its arguments: what devices are compared by, and compiled for.

A kernel that has a Pallas form takes it by itself where the program is for a GPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.attention import Sight, attend
from hope_jax.kernels.gated_deltanet import gated_delta
from hope_jax.kernels.newton_schulz import QUINTIC, iterate, unit
from hope_jax.kernels.xent_teach import cross_entropy
from hope_jax.memory.level_write import LevelWriter
from hope_jax.memory.levels import Level
from hope_jax.perf.kernel_benchmarks import (
    delta_inputs,
    self_mod_params,
    self_mod_pass,
    with_gradients,
    write_inputs,
    written,
)


class Check(NamedTuple):
    """run: what is computed. inputs: makes its arguments in float32. low: numbers of those that come in the
    compute dtype. by: numbers of those whose gradients are computed too."""

    name: str
    run: Callable[..., Any]
    inputs: Callable[[], tuple[Any, ...]]
    low: tuple[int, ...]
    by: tuple[int, ...] = ()

    def function(self) -> Callable[..., Any]:
        """The results, and the gradients of their summed squares."""
        if not self.by:
            return self.run
        gradients = with_gradients(self.run, self.by)
        return lambda *arguments: (self.run(*arguments), gradients(*arguments))

    def arguments(self, dtype: str) -> tuple[Any, ...]:
        """With those that come in the compute dtype in `dtype`."""
        return tuple(t.astype(dtype) if i in self.low else t for i, t in enumerate(self.inputs()))


def checks(width: int = 512, tokens: int = 256) -> Iterator[Check]:
    """Of all kernels, at a model's width; a new one joins here."""
    for period in (1, 32, 128):
        level = Level(period, 0.03)
        run, inputs = partial(written, LevelWriter, level), partial(write_inputs, level, width, tokens)
        yield Check(f"cms_write-{period}", run, inputs, low=(4, 5), by=(2, 3, 4, 5))
    delta = partial(delta_inputs, 1, tokens, 8, width // 8)
    yield Check("gated_deltanet", jax.vmap(gated_delta), delta, low=(0, 1, 2), by=(0, 1, 2, 3, 4, 5))
    yield Check("self_mod", self_mod_pass, partial(_self_mod, width, tokens), low=(1,), by=(0, 1))
    heads = partial(_heads, width, 2 * tokens)
    yield Check("attention", _attention, heads, low=(0, 1, 2), by=(0, 1, 2))
    yield Check("newton_schulz", _orthogonal, lambda: (_normal(2, width, 2 * width),), low=(0,))
    yield Check("xent_teach", _loss, partial(_hidden, width, tokens), low=(0,), by=(0, 1))


def _normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def _heads(width: int, tokens: int) -> tuple[Any, ...]:
    """Two rows of 8 heads; queries, keys and values are three streams of random numbers."""
    return tuple(jnp.split(_normal(2, tokens, 24, width // 8), 3, axis=2))


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal, with a document that ends in the middle of a row."""
    at = jnp.arange(query.shape[1], dtype=jnp.int32)[None]
    document = jnp.broadcast_to(at // (at.shape[1] // 2), query.shape[:2])
    return attend(query, key, value, Sight(at, at, document, document), window=0, aligned=True, twice=False)


def _self_mod(width: int, tokens: int) -> tuple[Any, ...]:
    return self_mod_params(width), _normal(1, tokens, width)


def _orthogonal(x: jax.Array) -> jax.Array:
    return iterate(unit(x, 1e-7), QUINTIC, 5)


def _hidden(width: int, tokens: int) -> tuple[Any, ...]:
    targets = jnp.arange(2 * tokens).reshape(2, tokens) % (8 * width)
    return _normal(2, tokens, width), _normal(8 * width, width) / width**0.5, targets


def _loss(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    return cross_entropy(hidden, head, targets).total
