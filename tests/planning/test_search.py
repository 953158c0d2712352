"""The search for the largest batch, with memory as a function."""

from collections.abc import Callable

import pytest

from hope_jax.planning.counts import Collective, Counts, Kernel
from hope_jax.planning.devices import Peaks
from hope_jax.planning.estimate import _bounds, bound
from hope_jax.planning.hlo import Instruction
from hope_jax.planning.search import largest_batch


def refusing(rows: int) -> float | None:
    return 3 + 2 * rows if rows <= 20 else None


@pytest.mark.parametrize(
    ("needed", "answer", "at_most"),
    [
        (lambda rows: 10 + 3 * rows, 30, 3),
        (lambda rows: 10 + 3 * rows + 0.01 * rows**2, 27, 5),
        (lambda rows: 10 + 7 * (rows + rows % 2), 12, 6),
        (lambda rows: 200 + rows, 0, 1),
        (lambda rows: 99, None, 6),
        (refusing, 20, 8),
    ],
)
def test_it_ends_at_neighbours_in_few_compilations(
    needed: Callable[[int], float | None], answer: int | None, at_most: int
) -> None:
    compiled: list[int] = []

    def counted(rows: int) -> float | None:
        compiled.append(rows)
        return needed(rows)

    fit = largest_batch(counted, 100.0, {3: needed(3)}, compilations=at_most)
    assert len(compiled) <= at_most
    if answer is None:
        assert fit.failing is None and not fit.exact
    else:
        assert (fit.largest, fit.failing, fit.exact) == (answer, answer + 1, True)


def test_without_compilations_left_it_gives_a_bracket() -> None:
    fit = largest_batch(lambda rows: None if rows > 37 else 1.0, 100.0, {4: 1.0}, compilations=4)
    assert fit.largest <= 37 < fit.failing <= 64


def test_the_bound_of_each_part_is_its_work_over_its_peak() -> None:
    counts = Counts({"bf16": 10.0, "f32": 6.0}, 40.0, {"all-reduce": Collective(1, 5.0, 9.0)})
    peaks = Peaks(bf16=10.0, float32=2.0, bandwidth=20.0, link=1.0, memory=1.0)
    assert bound(counts, peaks) == {"compute": 4.0, "memory": 2.0, "links": 9.0}


def test_launches_and_realistic_peaks_are_told_beside_the_bound() -> None:
    it = Instruction("k", "copy", (), (), "", "", False)
    counts = Counts({"bf16": 10.0}, 40.0, {}, kernels=(Kernel(it, "main", 30.0, {}, 0.0, "copies"),))
    peaks = Peaks(10.0, 2.0, bandwidth=20.0, link=1.0, memory=1.0, launch=0.1, sustained=0.2)
    found = _bounds(counts, peaks, tokens=60)
    assert found["seconds"] == {"compute": 1.0, "memory": 2.0, "links": 0.0}
    assert found["tokens_per_second"] == 30
    assert found["tokens_per_second_with_launches"] == pytest.approx(20)
    assert found["tokens_per_second_realistic"] == pytest.approx(12)
