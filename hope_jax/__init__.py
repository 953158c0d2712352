"""hope_jax: language models that keep learning while they run (Nested Learning / HOPE) in JAX."""

__version__ = "0.1.0"
