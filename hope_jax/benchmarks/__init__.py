"""Benchmarks of whole things: the train step, its compilation, the loader. `hope_jax.bench` runs them."""
