"""Writes docs/differences.md from the table of the deliberate differences.

python -m parity_tests.differences
"""

from collections.abc import Iterable
from pathlib import Path

from parity_tests.difference_table import ODDITIES, RULES, Difference

PAGE = Path(__file__).parents[1] / "docs" / "differences.md"

HEAD = """# Deliberate differences from the published code

Made by `python -m parity_tests.differences` from `parity_tests/difference_table.py`; do not edit.

*Published* is the PyTorch package `nested_learning` (commit 56463f3), whose numbers the golden files hold
(docs/golden.md). Where its rule is a defect we have the right one, and no option for the other. Equation
numbers are those of arXiv 2512.24695. The names in brackets are those that

```
python -m parity_tests.golden parity_tests/data
```

prints; sizes are the largest changes of recorded values that this command measures.
"""


def render() -> str:
    """The whole page."""
    return "\n".join(
        [
            HEAD,
            "## The 21 oddities of the published code",
            *_sections(ODDITIES, numbered=True),
            "## Other rules",
            *_sections(RULES, numbered=False),
        ]
    )


def _sections(table: Iterable[Difference], *, numbered: bool) -> Iterable[str]:
    for number, d in enumerate(table, 1):
        title = d.reason[0].upper() + d.reason[1:]
        yield f"\n### {f'{number}. ' if numbered else ''}{title} [{d.name}]\n"
        yield f"- **Published:** {d.published}"
        yield f"- **Ours:** {d.ours}"
        if d.why:
            yield f"- **Why:** {d.why}"
        if d.shows:
            yield f"- **Shows in:** {d.shows}"
        if d.sizes:
            measured = ", ".join(f"{size:.2g} in `{file}`" for file, size in d.sizes)
            yield f"- **Size:** {measured}"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
