"""docs/delta_momentum.md states what its script computes, and the conclusions that it draws follow."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "delta_momentum.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "delta_momentum.py"))


def close(stated: str, computed: str) -> bool:
    """Numbers within 2 % or one unit of what is shown (a rounding apart), words the same."""
    try:
        a, b = float(stated), float(computed)
    except ValueError:
        return stated == computed
    shown = 10.0 ** -len(stated.partition(".")[2])
    return abs(a - b) <= max(0.02 * abs(b), 1.01 * shown)


def numbers(table: str) -> list[list[str]]:
    """The cells of each row, taken apart."""
    return [[part.strip() for part in re.split(r"[|/,]", row)] for row in table.strip().splitlines()]


def test_tables_are_those_of_the_script(script: dict[str, Any]) -> None:
    stated = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    assert len(stated) == len(script["TABLES"])
    for table, (name, compute) in zip(stated, script["TABLES"].items(), strict=True):
        for row, wanted in zip(numbers(table), numbers(compute()), strict=True):
            assert len(row) == len(wanted) and all(map(close, row, wanted)), (name, row, wanted)


def test_conclusions_of_the_page(script: dict[str, Any]) -> None:
    momentum, delta, vector = script["RULES"]
    plain, wavy, outcomes, best = (script[name] for name in ("PLAIN", "WAVY", "outcomes", "best"))
    rates = np.array([0.01, 0.03, 0.1])
    for old, new in zip(*(outcomes(rule, 0.9, plain, 1.0, rates) for rule in (momentum, delta)), strict=True):
        assert new.length < 0.6 * old.length
    assert best(delta, 0.9, plain, 1.0).steps < best(momentum, 0.9, plain, 1.0).steps
    tuned = best(momentum, 0.5, plain, 1.0).steps
    assert tuned <= min(best(rule, 0.5, plain, 1.0).steps for rule in (delta, vector))
    assert best(momentum, 0.5, wavy, 1.0).steps < best(delta, 0.5, wavy, 1.0).steps
    assert best(delta, 0.9, plain, 5.0).length == best(vector, 0.9, plain, 3.0).length == np.inf


def test_scale_is_what_the_page_says(script: dict[str, Any]) -> None:
    assert script["loss_scale"](script["PLAIN"], 1.0) == pytest.approx(0.078, abs=5e-4)
    assert np.linalg.norm(script["START"]) == pytest.approx(4.03, abs=5e-3)
    assert (DOCS / "delta_momentum.png").stat().st_size > 10_000


def test_vector_and_matrix_differ_only_in_what_they_forget(script: dict[str, Any]) -> None:
    """The first step has nothing to forget; then they part."""
    _, delta, vector = script["RULES"]
    scale, rate = script["loss_scale"](script["PLAIN"], 1.0), np.array([0.03])
    a, b = (
        np.asarray(script["paths"](rule, 0.9, script["PLAIN"], scale, rate))[0] for rule in (delta, vector)
    )
    np.testing.assert_allclose(a[1], b[1], rtol=1e-12)
    assert np.abs(a[2] - b[2]).max() > 1e-6
