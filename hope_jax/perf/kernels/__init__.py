"""Benchmarks of kernels, one file a kernel; `hope_jax.bench` runs them."""
