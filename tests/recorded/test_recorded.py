"""The core computes what it computed when `numbers.npz` was written (`record.py`), to 1e-12."""

from functools import cache

import numpy as np
import pytest

from tests.recorded.cases import CASES, QUICK
from tests.recorded.numbers import TOLERANCE, Numbers, differences, numbers_of
from tests.recorded.record import load

SHOWN = 12
recorded = cache(load)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in CASES]
)
def test_numbers_are_as_recorded(name: str) -> None:
    wrong = differences(numbers_of(CASES[name]), recorded()[name])
    assert not wrong, "\n".join([f"{len(wrong)} of {len(recorded()[name])} differ", *wrong[:SHOWN]])


def test_every_case_is_recorded() -> None:
    assert list(recorded()) == list(CASES) and set(QUICK) <= set(CASES)


def test_differences_are_found() -> None:
    old: Numbers = {"a": np.array([1e3, 1.0]), "b": np.array([0.0, 0.0]), "c": np.array([1.0, 1.0])}
    near = {"a": old["a"] + 0.9e3 * TOLERANCE, "b": old["b"] + 0.9 * TOLERANCE, "c": old["c"]}
    assert not differences(near, old)
    far = {"a": old["a"] + 2e3 * TOLERANCE, "b": old["b"] + np.nan, "d": old["c"]}
    assert {line.split(":")[0] for line in differences(far, old)} == {"a", "b", "c", "d"}
