"""Intervals, p values and corrections against statsmodels, on random inputs and at the edges."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.descriptivestats import sign_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from hope_jax.evals import statistics
from hope_jax.evals.suite.comparison import holm

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
SIZES = (1, 2, 3, 10, 37, 400)


def hits(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


def test_shares_have_statsmodels_wilson_interval() -> None:
    rng = np.random.default_rng(0)
    for n in SIZES:
        for k in {0, 1, n - 1, n, int(rng.integers(n + 1))}:
            want = proportion_confint(k, n, method="wilson")
            np.testing.assert_allclose(statistics.proportion(hits(k, n))[1:3], want, **CLOSE)
        values = rng.random(n)
        want = proportion_confint(values.sum(), n, method="wilson")
        np.testing.assert_allclose(statistics.share(values)[1:3], want, **CLOSE)
        # What no hit or only hits leave of an average of shares is the far end of Wilson's interval.
        none, every = (statistics.within_one(statistics.Estimate(v, v, v, n), n) for v in (0.0, 1.0))
        np.testing.assert_allclose(none[1:3], proportion_confint(0, n, method="wilson"), **CLOSE)
        np.testing.assert_allclose(every[1:3], proportion_confint(n, n, method="wilson"), **CLOSE)


def test_means_and_paired_losses_have_statsmodels_interval_and_p_value() -> None:
    rng = np.random.default_rng(1)
    for n in SIZES[1:]:
        a = rng.normal(3, 2, n)
        b = a + rng.normal(rng.normal(), 1, n)
        np.testing.assert_allclose(statistics.mean(a)[1:3], DescrStatsW(a).tconfint_mean(), **CLOSE)
        found, peer = statistics.paired(a, b), DescrStatsW(a - b)
        np.testing.assert_allclose([found.low, found.high], peer.tconfint_mean(), **CLOSE)
        assert found.p_value == pytest.approx(peer.ttest_mean()[1], rel=1e-9) and found.test == "paired t"


def test_two_groups_of_pairs_have_welchs_interval_and_p_value() -> None:
    """The mean of two groups' differences is half of the first less the second's negative."""
    rng = np.random.default_rng(2)
    for n, m in ((2, 2), (2, 30), (17, 5), (200, 100)):
        first, second = rng.normal(0.4, 1, n), rng.normal(0.2, 3, m)
        found = statistics.paired_over([(first, np.zeros(n)), (np.zeros(m), -second)])
        peer = CompareMeans(DescrStatsW(first), DescrStatsW(-second))
        low, high = peer.tconfint_diff(usevar="unequal")
        np.testing.assert_allclose([found.low, found.high], [low / 2, high / 2], **CLOSE)
        assert found.p_value == pytest.approx(peer.ttest_ind(usevar="unequal")[1], rel=1e-9)
        assert found.delta == pytest.approx((first.mean() + second.mean()) / 2) and found.n == n + m


def test_paired_hits_have_statsmodels_mcnemar() -> None:
    rng = np.random.default_rng(3)
    tables = [rng.integers(0, 12, 4) for _ in range(60)]
    edges = [
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 7, 0),
        (0, 5, 5, 0),
        (4, 0, 0, 9),
        (0, 0, 0, 3),
        (0, 40, 2, 0),
    ]
    for both, one, other, neither in [*edges, *(table for table in tables if table.sum())]:
        a = np.repeat([True, True, False, False], [both, one, other, neither])
        b = np.repeat([True, False, True, False], [both, one, other, neither])
        found = statistics.paired(a, b)
        assert found.p_value == pytest.approx(mcnemar([[both, one], [other, neither]], exact=True).pvalue)
        assert found.low < found.delta < found.high or abs(found.delta) == 1
        assert found.low < found.high, "of however equal pairs"


def test_newcombes_interval_of_unrelated_hits_is_that_of_independent_ones() -> None:
    """Where the pairs show no association (ad = bc) the paired interval is the one of two samples."""
    for both, one, other, neither in ((6, 6, 4, 4), (1, 3, 2, 6), (10, 20, 5, 10)):
        n = both + one + other + neither
        a = np.repeat([True, True, False, False], [both, one, other, neither])
        b = np.repeat([True, False, True, False], [both, one, other, neither])
        found = statistics.paired(a, b)
        want = confint_proportions_2indep(both + one, n, both + other, n, method="newcomb", compare="diff")
        np.testing.assert_allclose([found.low, found.high], want, rtol=1e-6)


def test_equal_differences_have_statsmodels_sign_test() -> None:
    for n in (2, 3, 11):
        a = np.random.default_rng(n).normal(size=n)
        found = statistics.paired(a, a - 0.25)
        assert found.p_value == pytest.approx(sign_test(np.full(n, 0.25))[1]) and found.test == "sign"


def test_holms_values_are_statsmodels() -> None:
    rng = np.random.default_rng(4)
    for p in (rng.random(1), rng.random(40) ** 4, np.round(rng.random(20), 1), np.zeros(3), np.ones(2)):
        np.testing.assert_allclose(holm(p.tolist()), multipletests(p, method="holm")[1], **CLOSE)
