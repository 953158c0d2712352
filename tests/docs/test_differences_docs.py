"""docs/differences.md follows its table."""

from parity_tests.difference_table import BY_NAME, ODDITIES, TABLE
from parity_tests.differences import PAGE, render


def test_differences_page_is_current() -> None:
    assert render() == PAGE.read_text(encoding="utf-8"), "run python -m parity_tests.differences"


def test_table_is_complete() -> None:
    assert len(ODDITIES) == 21
    assert len(BY_NAME) == len(TABLE)
    assert all(d.reason and d.published and d.ours for d in TABLE)
