"""From raw text to token shards, on datatrove: what `python -m hope_jax.data.build` does."""
