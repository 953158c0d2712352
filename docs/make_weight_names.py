"""Writes the table of array names in docs/release.md from `hope_jax.storage.weights`.

python docs/make_weight_names.py
"""

import re
from pathlib import Path

from hope_jax.storage.weights import ARRAYS

PAGE = Path(__file__).with_name("release.md")
_TABLE = re.compile(r"\| name \| axes \|.*?\n\n", re.DOTALL)


def render() -> str:
    """The table."""
    rows = (f"| `{kind.name}` | {', '.join(kind.axes) or '(a number)'} | {kind.what} |" for kind in ARRAYS)
    return "| name | axes | what |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"


def renewed(page: str) -> str:
    """The page with the table as it is now."""
    return _TABLE.sub(lambda _: render(), page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
