"""Intervals and tests against published examples and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from hope_jax.core.files import to_json
from hope_jax.evals import statistics
from hope_jax.evals.suite import pages


def test_wilson_on_a_published_example():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                               (1, 29, 0.0061, 0.1718)):  # fmt: skip
        estimate = statistics.proportion([True] * hits + [False] * (n - hits))
        assert estimate.value == hits / n and estimate.n == n
        np.testing.assert_allclose([estimate.low, estimate.high], [low, high], atol=5e-5)


def test_newcombe_on_a_published_example():
    """Newcombe 1998 (paired), table III, method 10: e=36, f=12, g=2, h=0 gives 0.0569 to 0.3404."""
    x = np.array([1] * 36 + [1] * 12 + [0] * 2)
    y = np.array([1] * 36 + [0] * 12 + [1] * 2)
    found = statistics.paired(x, y)
    assert found.delta == pytest.approx(0.2) and found.test == "exact McNemar"
    np.testing.assert_allclose([found.low, found.high], [0.0569, 0.3404], atol=5e-5)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(2, 14, 0.5))


def test_intervals_hold_what_they_should():
    """Of 95 % intervals about 95 % hold the true value."""
    rng = np.random.default_rng(0)
    held = {"mean": 0, "proportion": 0, "paired": 0, "paired hits": 0}
    rounds = 2000
    for _ in range(rounds):
        found = statistics.mean(rng.normal(1.0, 2.0, 20))
        held["mean"] += found.low <= 1.0 <= found.high
        found = statistics.proportion(rng.random(60) < 0.3)
        held["proportion"] += found.low <= 0.3 <= found.high
        base = rng.normal(size=30)
        test = statistics.paired(base + rng.normal(0.5, 1, 30), base)
        held["paired"] += test.low <= 0.5 <= test.high
        easy = rng.random(80) < 0.5
        test = statistics.paired(easy | (rng.random(80) < 0.4), easy)
        held["paired hits"] += test.low <= 0.2 <= test.high
    assert all(0.935 * rounds <= count <= 0.97 * rounds for count in held.values()), held


def test_equal_arms_do_not_differ():
    for x in ([True, False, True], [0.5, 1.5, 2.5]):
        found = statistics.paired(x, x)
        assert found.delta == 0 and found.p_value == 1
        assert found.low <= 0 <= found.high


def test_one_value_has_no_interval():
    found = statistics.mean([2.0])
    assert found.value == 2 and math.isnan(found.low)
    assert found.as_json()["ci95"] is None


def test_one_pair_has_a_test_only_of_hits():
    for pair in ([2.0], [3.5]), ([2.0], [2.0]):
        found = statistics.paired(*pair)
        assert math.isnan(found.p_value) and found.as_json()["p_value"] is None
    assert statistics.paired([True], [False]).p_value == 1.0


def test_a_diverged_arm_has_no_interval_and_breaks_no_table():
    found = to_json(statistics.paired([math.nan, 1.0], [1.0, 2.0]).as_json())
    ((_, delta, p, *_),) = pages.paired_table({"task/loss/memorized-control": found}).rows
    assert found["ci95"] is None and delta.startswith("–") and p == "–"


def test_equal_differences_are_no_certainty():
    """Student's t would be infinite: p = 0 and an interval of no width, from two pairs."""
    for a, b in (([2.0, 3.5], [1.0, 2.5]), ([0.3, 0.5, 0.7], [0.2, 0.4, 0.6])):
        found = statistics.paired(a, b)
        assert found.test == "sign" and found.p_value == 2 * 0.5 ** len(a)
        assert math.isnan(found.low) and found.as_json()["ci95"] is None
    apart = statistics.paired_over([([2.0, 3.0], [1.0, 2.0]), ([2.0, 3.0], [0.0, 1.0])])
    assert apart.delta == 1.5 and apart.p_value == 2 * 0.5**4 and math.isnan(apart.high)


def test_groups_of_pairs_weigh_alike():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(mean, 1, n), rng.normal(0, 1, n)) for mean, n in ((3, 40), (0, 10), (0, 5))]
    found = statistics.paired_over(pairs)
    assert found.delta == pytest.approx(np.mean([np.mean(a - b) for a, b in pairs])) and found.n == 55
    assert found.test == "stratified paired t" and (found.p_value < 0.05) == (found.low > 0)
    # The groups are what they are: how they differ from each other makes nothing less certain.
    shifted = statistics.paired_over([(a + 100 * i, b) for i, (a, b) in enumerate(pairs)])
    assert shifted.high - shifted.low == pytest.approx(found.high - found.low)
    assert statistics.paired_over(pairs[:1])[:5] == pytest.approx(statistics.paired(*pairs[0])[:5])
    same = statistics.paired_over([(a, a) for a, _ in pairs])
    assert same[:4] == (0.0, 0.0, 0.0, 1.0)
    alone = statistics.paired_over([*pairs, (np.array([1.0]), np.array([0.0]))])
    assert math.isnan(alone.low) and math.isnan(alone.p_value) and alone.n == 56
    with pytest.raises(ValueError, match="as many values"):
        statistics.paired_over([([1.0, 2.0], [1.0])])
    for nothing in ([], [([], [])]):
        with pytest.raises(ValueError, match="no observations"):
            statistics.paired_over(nothing)


def test_a_share_of_one_kind_of_answer_has_an_interval():
    for n in (2, 40):
        none, every = (
            statistics.within_one(statistics.mean(values), n) for values in (np.zeros(n), np.ones(n))
        )
        assert none.low == 0 and none.high == pytest.approx(statistics.proportion([False] * n).high)
        assert every.high == 1 and every.low == pytest.approx(statistics.proportion([True] * n).low)
    assert math.isnan(statistics.within_one(statistics.mean([0.0]), 1).high)
    spread = statistics.mean(np.linspace(0.4, 0.6, 30))
    assert statistics.within_one(spread, 30) == spread


def test_nothing_is_no_estimate():
    for estimate in (statistics.mean, statistics.proportion):
        with pytest.raises(ValueError, match="no observations"):
            estimate([])
    with pytest.raises(ValueError, match="as many values"):
        statistics.paired([1.0], [1.0, 2.0])


def test_shares_have_wilsons_interval_and_stay_within_one():
    hits = [True] * 15 + [False] * 133
    np.testing.assert_allclose(statistics.share(np.array(hits, float))[:3], statistics.proportion(hits)[:3])
    found = statistics.share([0.25, 0.5])
    assert found.value == 0.375 and 0 <= found.low < 0.375 < found.high <= 1
    assert statistics.share([0.0] * 50).high > 0.05
