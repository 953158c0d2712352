"""The arms of an evaluation: each item scored without memorization, with its own text, with another one; and
arms that learn in steps."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals import statistics
from hope_jax.evals.reading.memorize import Memorizer, unrelated, updates_as_json
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Journal, Run, progress

_SECONDS = 10.0
"""Between lines of progress."""


Item = Any
"""What is scored; its `key`, stable over runs and limits, tells it from the others of its evaluation."""
Text = Callable[[Item], np.ndarray]
Score = Callable[[Sequence[Item], PyTree | None], list[dict[str, Any]]]
Records = dict[str, list[dict[str, Any]]]
Tables = tuple[dict[str, Any], dict[str, Any]]
"""Metrics and paired tests, as in an outcome."""


def run_arms(
    run: Run,
    journal: Journal,
    items: Sequence[Item],
    text: Text,
    score: Score,
    control: Callable[[Item, int, int], np.ndarray] | None = None,
    *,
    prefix: str = "",
) -> Records:
    """The records of each arm of `run`, in the order of the items. text: token ids that an item memorizes;
    with `use_correct_answer` they hold the answer. score: of a batch of items with the memories of as many
    contexts (None: the trained ones), one JSON value each; what memorization has written is added to it as
    "updates". A record that the journal has is not made again. control: the text of the control arm for an
    item, of a length in tokens, by a seed; None: `unrelated`. prefix: of the journal's keys."""

    def other(item: Item) -> np.ndarray:
        digest = hashlib.sha256(f"{run.seed}/{item.key}".encode()).digest()
        length, seed = len(text(item)), int.from_bytes(digest[:4], "big")
        return control(item, length, seed) if control else unrelated(run.subject, length, seed)

    texts = {BASELINE: None, MEMORIZED: text, CONTROL: other}
    return {arm: score_items(run, journal, prefix + arm, items, score, texts[arm]) for arm in run.arms}


def score_items(
    run: Run, journal: Journal, name: str, items: Sequence[Item], score: Score, text: Text | None = None
) -> list[dict[str, Any]]:
    """The records of items, as `run_arms` makes those of an arm. name: of the arm in the journal. text: what
    an item reads before; None: nothing."""
    memorizer = Memorizer(run.subject, run.memorize) if text else None
    carry = run.memorize.carry and memorizer is not None
    batch_size = 1 if carry else run.subject.batch_size(run.batch_size)
    missing = [item for item in items if journal.get(f"{name}/{item.key}") is None]
    # What the items before a missing one have written is needed again, their scores are not.
    due = items[: items.index(missing[-1]) + 1] if carry and missing else missing
    fast, last, done = None, time.monotonic(), len(items) - len(missing)
    for start in range(0, len(due), batch_size):
        batch = due[start : start + batch_size]
        memorized = memorizer([text(item) for item in batch], fast) if memorizer and text else None
        fast = memorized.fast if carry and memorized else None
        if journal.get(f"{name}/{batch[0].key}") is not None:
            continue
        found = score(batch, None if memorized is None else memorized.fast)
        for i, (item, record) in enumerate(zip(batch, found, strict=True)):
            written = {"updates": updates_as_json(memorized.stats, i)} if memorized else {}
            journal.put(f"{name}/{item.key}", {"key": item.key, **record, **written})
        done += len(batch)
        if time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            progress("arms").info("%s: %d of %d items", name.rpartition("/")[2], done, len(items))
    return journal.all([f"{name}/{item.key}" for item in items])


class Arm(NamedTuple):
    """One that learns in steps. state: before the first. learn: (state, step) -> state after it, and what to
    record. score: (state, step) -> what to record of the state after it."""

    state: Any
    learn: Callable[[Any, int], tuple[Any, dict[str, Any]]]
    score: Callable[[Any, int], dict[str, Any]]


def run_steps(
    journal: Journal, name: str, arm: Arm, count: int, told: Callable[[Mapping[str, Any]], str]
) -> list[dict[str, Any]]:
    """The record of each of `count` steps of an arm, with its "seconds" unless `learn` tells them. Steps that
    the journal has are learned again where later ones need it, and not scored again. told: for progress."""
    keys = [f"{name}/{step}" for step in range(count)]
    due, state = [step for step in range(count) if journal.get(keys[step]) is None], arm.state
    for step in range(due[-1] + 1 if due else 0):
        began = time.monotonic()
        state, learned = arm.learn(state, step)
        if step in due:
            record = {**learned, **arm.score(state, step)}
            journal.put(keys[step], {"seconds": time.monotonic() - began, **record})
            progress("arms").info("%s, step %d of %d: %s", name, step + 1, count, told(record))
    return journal.all(keys)


def timed(read: Callable[[], tuple[Any, ...]]) -> tuple[float, Any]:
    """Seconds until what a call returns is there, and that."""
    began, found = time.monotonic(), read()
    jax.block_until_ready(found)
    return time.monotonic() - began, found


def update_statistics(records: Records) -> dict[str, Any]:
    """Of each arm and level the means over items of what memorization has written."""
    found: dict[str, Any] = {}
    for arm, items in records.items():
        written = [item["updates"] for item in items if item.get("updates")]
        if written:
            found[arm] = {
                level: {name: float(np.mean([w[level][name] for w in written])) for name in counts}
                for level, counts in written[0].items()
            }
    return found


def compare(records: Records, group: str, chances: Mapping[str, float | None]) -> Tables:
    """Metrics "group/field/arm" of fields of the records, with their chance, and paired tests of the
    memorized arm against the others. A field of hits and misses (bool) is a share with Wilson's interval,
    any other a mean with Student's."""
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for field, chance in chances.items():
        for arm, items in records.items():
            found = [item[field] for item in items]
            hits = all(isinstance(value, bool) for value in found)
            estimate = statistics.proportion(found) if hits else statistics.mean(found)
            metrics[f"{group}/{field}/{arm}"] = estimate.as_json(chance)
        tests |= paired_arms(records, group, field, MEMORIZED, (BASELINE, CONTROL))
    return metrics, tests


def paired_arms(records: Records, group: str, field: str, arm: str, others: Sequence[str]) -> dict[str, Any]:
    """Paired tests "group/field/arm-other" of one arm against others, of those that are there."""
    values = {name: [item[field] for item in items] for name, items in records.items()}
    there = [other for other in others if arm in values and other in values]
    return {f"{group}/{field}/{arm}-{o}": statistics.paired(values[arm], values[o]).as_json() for o in there}
