"""Fixtures that tests of several floors use."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Compiles in half the time; what is compiled may be slow."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
