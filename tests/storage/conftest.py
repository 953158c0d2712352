"""Training runs of these tests are quick."""

from tests.quick_runs import needs_report, quick_runs

__all__ = ["needs_report", "quick_runs"]
