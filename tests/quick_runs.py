"""Fixtures of the tests that train: no peak is measured, and no report made that no test asks for."""

import pytest

from hope_jax.training import loop, telemetry


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch, request):
    """No peak measurement; no report but where a test asks for it with `needs_report`."""
    monkeypatch.setattr(telemetry, "measure_matmul_peak", lambda: 1e9)
    if "needs_report" not in request.fixturenames:
        monkeypatch.setattr(loop, "write_report", lambda workdir: None)


@pytest.fixture
def needs_report():
    """Keeps the report in a test that trains."""
