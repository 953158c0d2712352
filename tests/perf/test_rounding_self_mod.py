"""Rounding errors stay near those of docs/numerics.md, where a wrong inverse or decay would blow them up."""

import pytest
from hope_jax.kernels import triangular

from hope_jax.perf.rounding import self_mod as numerics


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 2e-5), pytest.param("bfloat16", 0.1, marks=pytest.mark.nightly)]
)
def test_correlated_keys_at_a_large_rate(dtype: str, bound: float) -> None:
    errors = numerics.chunk_error(64, 1.0, dtype, "correlated", dim=16)
    assert all(0 < error < bound for error in errors), errors


def test_inverse_by_powers_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 are what keeps float32 exact; with powers up to 64 the error has no digit left."""
    monkeypatch.setattr(triangular, "BLOCK", 64)
    numerics._chunk.clear_cache()
    forward, gradient = numerics.chunk_error(64, 1.0, "float32", "correlated", dim=16)
    numerics._chunk.clear_cache()
    assert not (forward < 1e-2 and gradient < 1e-2)


@pytest.mark.nightly
@pytest.mark.parametrize("decay", numerics.CHUNK_DECAYS)
def test_longest_chunks(decay: float) -> None:
    errors = numerics.chunk_error(256, decay, "float32", "correlated", dim=16)
    assert all(error < 1e-4 for error in errors), errors
