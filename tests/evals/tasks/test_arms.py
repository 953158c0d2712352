"""Arms: who is scored with which memories, and what is done again after a kill."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hope_jax.evals.reading.memorize import Memorizer, Rule
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.suite.run import ARMS, Journal, Run, outcome
from hope_jax.evals.tasks.arms import compare, run_arms, update_statistics
from tests.evals.reading.test_scoring import text
from tests.evals.subjects import subject


class Text(NamedTuple):
    key: str
    tokens: np.ndarray


ITEMS = [Text(f"item{n}", text(30, n)) for n in range(3)]


def scored(run: Run, calls: list[str] | None = None):
    def score(items, fast):
        if calls is not None:
            calls.extend(item.key for item in items)
        rows = token_log_probs(run.subject, [item.tokens for item in items], fast, batch_size=4)
        return [{"loss": -float(row.mean())} for row in rows]

    return score


def go(run: Run, calls: list[str] | None = None, items=ITEMS):
    journal = run.journal("made_up", {})
    found = run_arms(run, journal, items, lambda item: item.tokens, scored(run, calls))
    journal.close()
    return found


def make(tmp_path, **options) -> Run:
    return Run(subject(), tmp_path, memorize=Rule(steps=4), arms=ARMS, batch_size=2, **options)


def test_each_arm_has_the_memories_that_it_should(tmp_path):
    found = go(make(tmp_path))
    memorize = Memorizer(subject(), Rule(steps=4))
    for i, item in enumerate(ITEMS):
        plain = -token_log_probs(subject(), [item.tokens])[0].mean()
        own = -token_log_probs(subject(), [item.tokens], memorize([item.tokens]).fast)[0].mean()
        assert found["baseline"][i]["loss"] == pytest.approx(plain, abs=1e-5)
        assert found["memorized"][i]["loss"] == pytest.approx(own, abs=1e-5)
        assert own < found["control"][i]["loss"] != pytest.approx(plain, abs=1e-5)
        assert "updates" not in found["baseline"][i]
        assert found["control"][i]["updates"]["cms/fast"]["updates_applied"] > 0
    metrics, paired = compare(found, "made_up", {"loss": None})
    assert metrics["made_up/loss/memorized"]["n"] == 3
    assert paired["made_up/loss/memorized-control"]["delta"] < 0
    assert update_statistics(found)["memorized"]["cms/slow"]["updates_applied"] == 4 * 2
    assert "baseline" not in update_statistics(found)


def test_carried_memories_go_from_item_to_item_also_over_a_kill(tmp_path):
    run = Run(subject(), tmp_path, memorize=Rule(carry=True), arms=("memorized",))
    whole = go(run)["memorized"]
    memorize, fast = Memorizer(subject(), Rule()), None
    for item, record in zip(ITEMS, whole, strict=True):
        fast = memorize([item.tokens], fast).fast
        loss = -token_log_probs(subject(), [item.tokens], fast)[0].mean()
        assert record["loss"] == pytest.approx(loss, abs=1e-5)
    path = tmp_path / "made_up.partial.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"key": "memo')
    calls: list[str] = []
    again = go(run, calls)["memorized"]
    assert calls == ["item2"]
    assert again[2]["loss"] == pytest.approx(whole[2]["loss"], abs=1e-6)


def test_what_is_there_is_not_done_again(tmp_path):
    run = Run(subject(), tmp_path)
    first: list[str] = []
    second: list[str] = []
    go(run, first, ITEMS[:2])
    go(run, second)
    assert sorted(first) == ["item0", "item1"] and second == ["item2"]


def test_other_settings_begin_anew(tmp_path):
    calls: list[str] = []
    go(Run(subject(), tmp_path), calls)
    go(Run(subject(), tmp_path, seed=1), calls)
    assert len(calls) == 6


def test_a_journal_of_nonsense_is_begun_anew(tmp_path):
    path = tmp_path / "x.partial.jsonl"
    path.write_text("nonsense\n")
    journal = Journal(path, {"a": 1})
    assert journal.get("k") is None
    journal.put("k", {"v": 1})
    journal.close()
    again = Journal(path, {"a": 1})
    assert again.get("k") == {"v": 1}
    again.close()


def test_a_journal_adds_up_the_seconds_of_all_starts(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    path = tmp_path / "x.partial.jsonl"
    first = Journal(path, {"a": 1}, 990.0)
    clock[0] += 5
    first.put("k", {"v": 1})
    clock[0] += 50
    first.put("l", {"v": 2})
    clock[0] += 3
    assert first.seconds() == 68.0
    with path.open("a") as file:  # killed as it writes
        file.write('{"key": "m", "rec')
    clock[0] = 20.0  # another process
    second = Journal(path, {"a": 1})
    clock[0] += 4
    assert second.seconds() == 69.0, "up to the last record of the killed start"
    clock[0] = 7.0
    third = Journal(path, {"a": 1})
    clock[0] += 2
    third.put("m", {"v": 3})
    assert third.seconds() == 67.0 and third.get("l") == {"v": 2}
    assert Journal(path, {"a": 2}).seconds() == 0.0, "of other settings"


def test_a_leak_is_marked_where_its_figure_stands(tmp_path):
    run = Run(subject(), tmp_path, memorize=Rule(use_correct_answer=True), arms=ARMS, records=True)
    value = {"value": 1.0, "ci95": None, "n": 1, "chance": None}
    test = {"delta": 1.0}
    found = outcome(
        run,
        "made_up",
        settings={"length": 3},
        metrics={f"t/acc/{arm}": value for arm in ARMS},
        paired={"t/acc/memorized-control": test},
        items=[{"key": "a"}],
        seconds=1.0,
    )
    assert found["leak"] and found["metrics"]["t/acc/memorized"]["leak"]
    assert found["paired"]["t/acc/memorized-control"]["leak"]
    assert "leak" not in found["metrics"]["t/acc/baseline"] and found["items"] == [{"key": "a"}]
    assert found["settings"]["length"] == 3 and found["settings"]["memorize"]["use_correct_answer"]
    json.dumps(jax.tree.map(str, found["subject"]))
