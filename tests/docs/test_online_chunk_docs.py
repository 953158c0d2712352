"""docs/memory.md shows the tables of docs/online_chunk.json."""

import json
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_tables_are_those_of_the_stored_results() -> None:
    made = runpy.run_path(str(DOCS / "online_chunk.py"))["tables"]
    results = json.loads((DOCS / "online_chunk.json").read_text(encoding="utf-8"))
    assert made(results) in (DOCS / "memory.md").read_text(encoding="utf-8")
