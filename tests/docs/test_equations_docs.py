"""docs/equations.md is current, and what it names exists."""

import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_equations.py"))


def test_equations_page_is_current(script: dict[str, Any]) -> None:
    page = (DOCS / "equations.md").read_text(encoding="utf-8")
    assert script["render"]() == page, "run python docs/make_equations.py"


def test_everything_that_is_named_exists(script: dict[str, Any]) -> None:
    assert script["missing"]() == []
    assert not script["_exists"]("hope_jax/memory/cms.py::NoSuchClass.read")
    assert not script["_exists"]("hope_jax/memory/nowhere.py::read")


def test_every_row_has_a_function_and_a_test(script: dict[str, Any]) -> None:
    for row in script["EQUATIONS"]:
        assert row.functions and row.tests, row
        assert all("::test_" in test for test in row.tests), row


def test_every_equation_that_the_code_cites_is_listed(script: dict[str, Any]) -> None:
    listed = set().union(
        *(script["numbers"](row.number) for row in script["EQUATIONS"] if row.source == "NL")
    )
    cited = script["cited"]()
    assert cited
    assert {number: path for number, path in cited.items() if number not in listed} == {}
