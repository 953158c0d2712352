"""Paired tests of a checkpoint against a baseline, item by item."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from hope_jax.evals.suite.comparison import compare, holm, scores
from hope_jax.evals.suite.pages import paired_table


def result(records: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    metrics = dict.fromkeys(("t/loss/baseline", "t/hit/baseline", "all/perplexity/baseline"), {})
    settings = {"checkpoint": "a", "seed": 1}
    return {"eval": "e", "settings": settings, "metrics": metrics, "items": records, **more}


def records(arm: str, loss: np.ndarray, hit: np.ndarray, keys: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "key": f"t/{key}",
            "arm": arm,
            "loss": float(loss[key]),
            "hit": bool(hit[key]),
            "updates": {},
        }
        for key in keys
    ]


def test_the_tests_are_those_of_the_shared_items_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    a, b, hit_a, hit_b = (
        rng.normal(size=40),
        rng.normal(0.5, size=40),
        rng.random(40) < 0.8,
        rng.random(40) < 0.4,
    )
    first = result(records("baseline", a, hit_a, list(range(40))))
    second = result(records("baseline", b, hit_b, list(range(39, 4, -1))))
    found = compare(first, second)
    assert found["only_one"] == 10 and found["settings_differ"] == [] and set(found["paired"]) == {
        "t/loss/baseline", "t/hit/baseline",
    }  # fmt: skip
    loss, hit = found["paired"]["t/loss/baseline"], found["paired"]["t/hit/baseline"]
    difference = a[5:] - b[5:]
    interval = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert loss["n"] == hit["n"] == 35
    assert loss["delta"] == pytest.approx(difference.mean()) and loss["ci95"] == pytest.approx([*interval])
    assert loss["p_value"] == pytest.approx(stats.ttest_rel(a[5:], b[5:]).pvalue)
    better, worse = (hit_a & ~hit_b)[5:].sum(), (hit_b & ~hit_a)[5:].sum()
    assert hit["p_value"] == pytest.approx(stats.binomtest(int(better), int(better + worse)).pvalue)
    assert hit["delta"] == pytest.approx((better - worse) / 35) and better != worse
    assert sorted([loss["p_holm"], hit["p_holm"]]) == pytest.approx(
        sorted(holm([loss["p_value"], hit["p_value"]]))
    )


def test_the_same_key_in_another_arm_or_task_is_another_item() -> None:
    found = scores(
        result(
            [
                {"key": "0", "arm": "baseline", "loss": 1.0, "tokens": 7, "perplexity": -3.0},
                {"key": "0", "arm": "memorized", "loss": 2.0, "hit": "text"},
                {"key": "u/v/0", "arm": "memorized", "loss": 3},
                {"key": "1", "arm": "baseline", "loss": None},
                {"key": "2", "arm": "baseline", "loss": 8.0},
                {"key": "2", "arm": "baseline", "loss": 9.0},
            ]
        )
    )
    assert found == {
        "e/loss/baseline": {"0": 1.0, "2": 9.0},
        "e/loss/memorized": {"0": 2.0},
        "u/v/loss/memorized": {"u/v/0": 3},
    }


def test_a_record_counts_in_the_tasks_that_it_names() -> None:
    rows = [{"key": "u/0", "arm": "baseline", "tasks": ["all", "u"], "loss": 1.0}]
    assert scores(result(rows)) == {"all/loss/baseline": {"u/0": 1.0}, "u/loss/baseline": {"u/0": 1.0}}


def test_tests_that_pool_others_are_a_family_of_their_own() -> None:
    rng = np.random.default_rng(0)
    for order in (["all", "{}"], ["{}", "all"]):
        rows = [
            {"key": f"{task}/{i}", "arm": arm, "tasks": [name.format(task) for name in order], "loss": 0.0}
            for task in "uvw" for i in range(8) for arm in ("baseline", "memorized")
        ]  # fmt: skip
        other = [{**row, "loss": rng.normal(0.5)} for row in rows]
        found = compare(result(rows), result(other))["paired"]
        pooled = {name for name, test in found.items() if test.get("pooled")}
        assert pooled == {"all/loss/baseline", "all/loss/memorized"} and len(found) == 8
        for family in (pooled, set(found) - pooled):
            tests = [found[name] for name in family]
            assert [test["p_holm"] for test in tests] == holm([test["p_value"] for test in tests])
    # Of one part the whole is that part: what is named first pools.
    rows, other = ([{**row, "tasks": ["all", "u"]} for row in each] for each in (rows, other))
    found = compare(result(rows), result(other))["paired"]
    assert {name for name, test in found.items() if test.get("pooled")} == pooled
    assert found["u/loss/baseline"]["p_holm"] == found["all/loss/baseline"]["p_holm"]


def test_a_leak_is_marked_where_it_counts_and_other_settings_are_named() -> None:
    rows = [
        {"key": k, "arm": arm, "loss": v}
        for k, v in (("0", 1.0), ("1", 2.5))
        for arm in ("baseline", "memorized")
    ]
    other = result(rows)
    other["settings"] = {"checkpoint": "b", "seed": 2, "data": "d"}
    found = compare(result(rows, leak=True), other)
    assert found["settings_differ"] == ["data", "seed"]
    assert (
        found["paired"]["e/loss/memorized"]["leak"] is True
        and "leak" not in found["paired"]["e/loss/baseline"]
    )
    assert found["paired"]["e/loss/baseline"]["p_value"] == 1.0


def test_one_pair_of_losses_is_no_test_and_costs_the_others_nothing() -> None:
    rows = [{"key": f"t/{i}", "arm": "baseline", "loss": float(i * i)} for i in range(5)]
    alone = [{"key": "u/0", "arm": "baseline", "loss": 1.5}, {"key": "v/0", "arm": "baseline", "hit": True}]
    other = [{**row, "loss": row["loss"] + 1.0 / (1 + i)} for i, row in enumerate(rows)]
    found = compare(result(rows + alone), result([*other, {**alone[0], "loss": 2.5}, alone[1]]))["paired"]
    assert found["u/loss/baseline"] == {
        "delta": -1.0, "ci95": None, "p_value": None, "n": 1, "test": "paired t", "p_holm": None,
    }  # fmt: skip
    assert found["v/hit/baseline"]["p_value"] == 1.0, "McNemar's test is exact for one pair too"
    assert found["t/loss/baseline"]["p_holm"] == pytest.approx(2 * found["t/loss/baseline"]["p_value"])
    (row,) = paired_table({"u/loss/baseline": found["u/loss/baseline"]}).rows
    assert row[1:5] == ["-1", "–", "–", "1"]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
