"""The Gram form against the oracle: bounds off, idle, active; with and without velocity; skipped periods."""

import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.cms_write import naive, write_periods


@pytest.mark.parametrize("velocity", [True, False])
@pytest.mark.parametrize("bounds", [(None, None), (1e3, 1e3), (0.5, 1.0)])
@pytest.mark.parametrize(("periods", "period"), [(1, 6), (4, 3), (12, 1)])
def test_matches_naive(
    periods: int, period: int, bounds: tuple[float | None, float | None], velocity: bool
) -> None:
    rng = np.random.default_rng(periods)
    x, g = rng.normal(size=(periods * period, 7)), rng.normal(size=(periods * period, 5))
    delta, v = 0.3 * rng.normal(size=(7, 5)), rng.normal(size=(7, 5)) if velocity else None
    applied = np.arange(periods) % 3 != 1
    options = {"beta": 0.9, "lr": 0.2, "max_write": bounds[0], "max_delta": bounds[1]}
    want_delta, want_v = naive.write_periods(x, g, delta, v, applied, **options)
    got = write_periods(*map(jnp.asarray, (x, g, delta)), v, jnp.asarray(applied), **options)
    np.testing.assert_allclose(got.delta, want_delta, rtol=0, atol=1e-12)
    assert np.linalg.norm(want_delta - delta) > 0.1
    if velocity:
        np.testing.assert_allclose(got.velocity, want_v, rtol=0, atol=1e-12)
    active = bool((got.write_hits & applied).any()), bool((got.delta_hits & applied).any())
    assert active == ((True, True) if bounds[0] == 0.5 else (False, False))
