"""The arms of an evaluation: each item scored without memorization, with its own text, with another one."""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals import statistics
from hope_jax.evals.reading import updates
from hope_jax.evals.reading.memorize import Memorized, Memorizer, unrelated
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Run, progress

_SECONDS = 10.0
"""Between lines of progress."""


class Item(Protocol):
    """What is scored; `key` tells it from the others of its evaluation."""

    @property
    def key(self) -> str:
        """Stable over runs and limits."""
        ...


I = TypeVar("I", bound=Item)  # noqa: E741
Records = dict[str, list[dict[str, Any]]]


def run_arms(
    run: Run,
    journal: Journal,
    items: Sequence[I],
    text: Callable[[I], np.ndarray],
    score: Callable[[Sequence[I], PyTree | None], list[dict[str, Any]]],
    control: Callable[[I, int, int], np.ndarray] | None = None,
) -> Records:
    """The records of each arm of `run`, in the order of the items.

    text: token ids that an item memorizes; with `use_correct_answer` they hold the answer. score: of a batch
    of items with the memories of as many contexts (None: the trained ones), one JSON value each; what
    memorization has written is added to it as "updates". A record that the journal has is not made again.
    control: the text of the control arm for an item, of a length in tokens, by a seed; None: `unrelated`.
    """
    other = control or (lambda item, length, seed: unrelated(run.subject, length, seed))
    return {
        arm: _run_arm(run, journal, arm, items, other if arm == CONTROL else None, text, score)
        for arm in run.arms
    }


def _run_arm(
    run: Run,
    journal: Journal,
    arm: str,
    items: Sequence[I],
    control: Callable[[I, int, int], np.ndarray] | None,
    text: Callable[[I], np.ndarray],
    score: Callable[[Sequence[I], PyTree | None], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    memorizer = None if arm == BASELINE else Memorizer(run.subject, run.memorize)
    carry = run.memorize.carry and memorizer is not None
    batch_size = 1 if carry else run.subject.batch_size(run.batch_size)
    missing = [item for item in items if journal.get(f"{arm}/{item.key}") is None]
    # What the items before a missing one have written is needed again, their scores are not.
    due = items[: items.index(missing[-1]) + 1] if carry and missing else missing
    log, fast, last, done = progress("arms"), None, time.monotonic(), len(items) - len(missing)
    for start in range(0, len(due), batch_size):
        batch = due[start : start + batch_size]
        memorized = None
        if memorizer is not None:
            memorized = memorizer(_texts(run.seed, batch, text, control), fast)
            fast = memorized.fast if carry else None
        if journal.get(f"{arm}/{batch[0].key}") is not None:
            continue
        found = score(batch, None if memorized is None else memorized.fast)
        for i, (item, record) in enumerate(zip(batch, found, strict=True)):
            journal.put(f"{arm}/{item.key}", {"key": item.key, **record, **_updates(memorized, i)})
        done += len(batch)
        if time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            log.info("%s: %d of %d items", arm, done, len(items))
    return [journal.get(f"{arm}/{item.key}") or {} for item in items]


def _texts(
    seed: int,
    batch: Sequence[I],
    text: Callable[[I], np.ndarray],
    control: Callable[[I, int, int], np.ndarray] | None,
) -> list[np.ndarray]:
    texts = [text(item) for item in batch]
    if control is None:
        return texts
    return [control(item, len(own), _seed(seed, item.key)) for own, item in zip(texts, batch, strict=True)]


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "big")


def _updates(memorized: Memorized | None, i: int) -> dict[str, Any]:
    return {} if memorized is None else {"updates": updates.as_json(memorized.stats, i)}


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


def compare(
    records: Records, field: str, name: str, chance: float | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics "name/arm" of a field of the records, and paired tests of the memorized arm against the others.

    A field of hits and misses (bool) is a share with Wilson's interval, any other a mean with Student's.
    """
    values = {arm: [item[field] for item in items] for arm, items in records.items()}
    metrics = {}
    for arm, found in values.items():
        hits = all(isinstance(value, bool) for value in found)
        estimate = statistics.proportion(found) if hits else statistics.mean(found)
        metrics[f"{name}/{arm}"] = statistics.as_json(estimate, chance)
    paired = {
        f"{name}/{MEMORIZED}-{other}": statistics.paired_as_json(
            statistics.paired(values[MEMORIZED], values[other])
        )
        for other in (BASELINE, CONTROL)
        if MEMORIZED in values and other in values
    }
    return metrics, paired
