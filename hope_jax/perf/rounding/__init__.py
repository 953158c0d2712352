"""Rounding errors of kernels against float64, one table a kernel (docs/numerics.md)."""
