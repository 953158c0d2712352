"""docs/config.md follows the schema."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_config_page_is_current() -> None:
    made = runpy.run_path(str(DOCS / "make_config_reference.py"))["render"]()
    assert made == (DOCS / "config.md").read_text(encoding="utf-8"), (
        "run python docs/make_config_reference.py"
    )


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in (DOCS / "config.md").read_text().splitlines() if line.startswith("| `")]
    assert rows and not [row for row in rows if "|  |" in row]
