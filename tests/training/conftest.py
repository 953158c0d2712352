import pytest

from hope_jax.training import loop, telemetry


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """No peak measurement; no report but where a test asks for it with `needs_report`."""
    monkeypatch.setattr(telemetry, "measure_matmul_peak", lambda: 1e9)
    if "needs_report" not in request.fixturenames:
        monkeypatch.setattr(loop, "write_report", lambda workdir: None)


@pytest.fixture
def needs_report():
    """Keeps the report in a test that trains."""
