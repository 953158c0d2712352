"""First values of parameters, in the two styles, and what exported parameters are."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import Array

Init = Callable[..., Array]
"""(key, shape, dtype) -> array."""


class Initial(NamedTuple):
    """How parameters begin. modern: the modern style, else the reference's. num_layers: of the model, which
    scales what is added to the residual stream. dtype: of parameters."""

    modern: bool
    num_layers: int
    dtype: jnp.dtype

    def matrix(self, *, residual: bool = False) -> Init:
        """Of a [in, out] matrix: uniform +-1/sqrt(fan_in) in the reference; normal of that scale in modern,
        smaller by sqrt(2 * layers) where the output is added to the residual stream."""
        if not self.modern:
            return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        scale = 1.0 / (2 * self.num_layers) if residual else 1.0
        return jax.nn.initializers.variance_scaling(scale, "fan_in", "normal")

    def conv(self, window: int) -> Init:
        """Of the depthwise convolution [window, D]: torch's uniform in the reference, identity in modern."""
        if not self.modern:
            return bias(window)

        def identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            del key
            return jnp.zeros(shape, dtype).at[-1].set(1.0)

        return identity


def bias(fan_in: int) -> Init:
    """The reference's bias: uniform +-1/sqrt(fan_in) of the matrix that it belongs to."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(fan_in, dtype))

    return init


def transposed(init: Init) -> Init:
    """The same distribution for a matrix (out, in)."""

    def turned(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return init(key, shape[::-1], dtype).T

    return turned


class ArrayKind(NamedTuple):
    """What the arrays of a name are.

    name: dotted; LEVEL stands for a level's name, {a,b} for either. axes: of the array; those of `blocks.*`
    come after the axis `layer`.
    """

    name: str
    axes: tuple[str, ...]
    what: str
