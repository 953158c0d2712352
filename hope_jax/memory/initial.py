"""Parameters: their first values in the two styles, and what they are exported as."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.core.types import Array, FrozenMapping, PyTree

Init = Callable[..., Array]
"""(key, shape, dtype) -> array."""

Entries: TypeAlias = Mapping[str, Any]
"""Name -> (first value, shape), names below it, or (names below it, L) for stacks [L, ...]. The order decides
what a seed draws."""

ArrayKinds: TypeAlias = tuple[tuple[str, tuple[str, ...], str], ...]
"""What exported parameters are: dotted names below "blocks", axes after that of the layers, and a sentence.
LEVEL stands for a level's name, {a,b} for either."""


class Initial(NamedTuple):
    """How parameters begin. modern: the modern style, else the reference's. num_layers: of the model, which
    scales what is added to the residual stream. dtype: of parameters."""

    modern: bool
    num_layers: int
    dtype: jnp.dtype

    def matrix(self, *, residual: bool = False) -> Init:
        """A matrix [in, out]: uniform +-1/sqrt(fan_in) in the reference; normal of that scale in modern,
        smaller by sqrt(2 * layers) where the output is added to the residual stream."""
        if not self.modern:
            return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        scale = 1.0 / (2 * self.num_layers) if residual else 1.0
        return jax.nn.initializers.variance_scaling(scale, "fan_in", "normal")

    def conv(self, window: int) -> Init:
        """The taps [window, D] of a convolution: torch's uniform in the reference, else the identity."""
        if not self.modern:
            return bias(window)
        return lambda _, shape, dtype: jnp.zeros(shape, dtype).at[-1].set(1.0)


def bias(fan_in: int) -> Init:
    """The reference's bias: uniform +-1/sqrt(fan_in) of the matrix that it belongs to."""
    return lambda key, shape, dtype: (
        jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(fan_in, dtype))
    )


def transposed(init: Init) -> Init:
    """The same distribution for a matrix (out, in)."""
    return lambda key, shape, dtype: init(key, shape[::-1], dtype).T


class Params(nn.Module):
    """Owns the parameters of `Entries`; called, it gives them."""

    entries: Entries
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> PyTree:
        """The parameters, a tree like `entries`."""
        return {name: self._declared(name, entry) for name, entry in self.entries.items()}

    def _declared(self, name: str, entry: Any) -> PyTree:
        if isinstance(entry, Mapping):
            return Params(entry, self.dtype, name=name)()
        if isinstance(entry[0], Mapping):
            below, size = entry

            def declared(layer: Params, carry: None, _: None) -> tuple[None, PyTree]:
                return carry, layer()

            stacks = nn.scan(declared, variable_axes={"params": 0}, split_rngs={"params": True}, length=size)
            # A dict's names would be sorted on the way into the scan.
            return stacks(Params(FrozenMapping(below), self.dtype, name=name), None, None)[1]
        return self.param(name, *entry, self.dtype)
