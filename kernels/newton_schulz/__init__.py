"""Newton-Schulz iterations towards the nearest semi-orthogonal matrix, for stacks of matrices."""

from hope_jax.kernels.newton_schulz.batched import CUBIC, QUINTIC, Spread, iterate, iterate_all, unit
