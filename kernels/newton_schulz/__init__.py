"""Newton-Schulz iterations towards the nearest semi-orthogonal matrix, for stacks of matrices."""

from .batched import CUBIC, QUINTIC, Coefficients, Spread, iterate, iterate_all, unit
