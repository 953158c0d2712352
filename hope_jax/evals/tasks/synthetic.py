"""A synthetic task's answers: the task that the checkpoint was trained on, on strings that it has not read
(docs/evals/synthetic.md). There is nothing to memorize beforehand: the one arm is the baseline.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import NO_TARGET, PyTree
from hope_jax.data.batches import host_batch
from hope_jax.data.synthetic import Example, Task, find_task
from hope_jax.data.synthetic.rows import padded, strings
from hope_jax.evals import statistics
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.run import BASELINE, Journal, Run, evaluation, item_key, whole_number
from hope_jax.evals.tasks.arms import score_items
from hope_jax.evals.tasks.curves import synthetic_figures

NAME = "synthetic"

STRINGS = 500
"""Strings of a split, without a limit."""
_LENGTHS = 10
"""Tokens of a step of the curve over length."""
_NO_MEMORIZATION = (
    "Memorization does not apply: a string that has been read before would tell its answers, so there is the "
    "baseline alone."
)


class String(NamedTuple):
    """key: its number in the split."""

    key: str
    example: Example


class Split(NamedTuple):
    """Strings and, for each, whether each answer asked for was right, bool [m]."""

    examples: list[Example]
    hits: list[np.ndarray]


def _asked(run: Run) -> tuple[dict[str, Any], Task]:
    """The settings and the task. Raises: ConfigError also if the checkpoint was trained on something else."""
    targets, data = run.options.get("synthetic_targets", False), run.subject.config.data
    if not isinstance(targets, bool):
        raise ConfigError(f"synthetic_targets={targets!r}: want true or false")
    count = whole_number(run.options, "synthetic_strings", STRINGS)
    task = find_task(data.source, data.task_options, data.seq_len)
    if task is None:
        raise ConfigError(
            f"{run.subject.name} was trained on {data.source!r}, not on a synthetic task; evaluate a run of "
            "configs/synthetic/"
        )
    settings = {
        "task": data.source.partition(":")[2],
        "strings": min(count, run.limit or count),
        "targets": targets,
    }
    return {**settings, "arms": [BASELINE], "memorize": None}, task


@evaluation(NAME, _asked, synthetic_figures)
def evaluate(run: Run, journal: Journal, settings: dict[str, Any], task: Task) -> dict[str, Any]:
    """Answers on every split of the task: right per position and per string, by group and by length."""
    name, size = settings["task"], run.subject.batch_size(run.batch_size)

    def score(batch: Sequence[String], _: PyTree | None) -> list[dict[str, Any]]:
        examples = [string.example for string in batch]
        found = answers(run.subject, examples, size, targets=settings["targets"])
        pairs = zip(found, examples, strict=True)
        return [{"hits": (given == asked(example)).astype(int).tolist()} for given, example in pairs]

    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    for at in task.splits:
        # Training's seeds, being numbers, never equal this one.
        examples = strings(task, at, settings["strings"], f"held out {run.seed}")
        found = score_items(run, journal, at, [String(f"{i}", e) for i, e in enumerate(examples)], score)
        split = Split(examples, [np.array(record["hits"], bool) for record in found])
        metrics |= measured(name, at, task, split)
        curves[at] = by_length(split)
        items += [record(name, at, i, *pair) for i, pair in enumerate(zip(*split, strict=True))]
    notes = [] if run.arms == (BASELINE,) else [_NO_MEMORIZATION]
    return {"metrics": metrics, "items": items, "by_length": curves, "notes": notes}


def record(name: str, at: str, i: int, example: Example, hits: np.ndarray) -> dict[str, Any]:
    """What a string has come to; its scores have the names of the split's metrics."""
    return {
        "key": item_key(f"{name}/{at}/{i}", example.tokens.tobytes() + example.targets.tobytes()),
        "arm": BASELINE,
        "tasks": [name],
        f"{at}_positions": float(hits.mean()),
        f"{at}_strings": bool(hits.all()),
        "split": at,
        "item": i,
        "hits": hits.astype(int).tolist(),
    }


def asked(example: Example) -> np.ndarray:
    """The answers that a string asks for, int32 [m]."""
    return example.targets[example.targets != NO_TARGET]


def answers(
    subject: Subject, examples: Sequence[Example], batch_size: int, *, targets: bool
) -> list[np.ndarray]:
    """The likeliest symbol at every position where something is asked, int64 [m] of each string. Strings are
    contexts of their own, padded on the right, where neither reads nor writes see it. targets: see
    `evaluate`."""
    trained = subject.trained
    streamer, size = trained.streamer, trained.streamer.rule.chunk_size
    width = size * -(-max(len(example.tokens) for example in examples) // size)
    zeros, none = np.zeros(width, np.int32), np.full(width, NO_TARGET, np.int32)
    rows = [padded(example, width) for example in examples]
    rows += [host_batch(zeros, none, zeros)] * (batch_size - len(rows))
    tokens, wanted, segments = (np.stack(arrays) for arrays in zip(*rows, strict=True))
    batch = host_batch(tokens, wanted if targets else np.full_like(wanted, NO_TARGET), segments)
    # The stream's own call would take the next token for the target.
    state = streamer.begin(trained.params, len(rows), width, trained.fast)
    logits, _ = streamer.write_chunks(trained.params, state, batch)
    likeliest = np.asarray(logits.argmax(-1))
    return [
        row[: len(example.tokens)][example.targets != NO_TARGET]
        for row, example in zip(likeliest, examples, strict=False)
    ]


def measured(name: str, at: str, task: Task, split: Split) -> dict[str, dict[str, Any]]:
    """The metrics of a split. Positions: mean over strings of the share of right answers, whose chance is
    that of the best constant answer; strings: all answers right, whose chance is that of guesses as good."""
    labels = np.concatenate([asked(example) for example in split.examples])
    best = np.bincount(labels).argmax()
    constant = float(np.mean([float((asked(example) == best).mean()) for example in split.examples]))
    rate = float((labels == best).mean())
    guesses = float(np.mean([rate ** len(row) for row in split.hits]))
    right = statistics.proportion([bool(row.all()) for row in split.hits])
    means = statistics.mean([float(row.mean()) for row in split.hits])
    found = {
        f"{name}/{at}_positions/{BASELINE}": statistics.within_one(means, len(split.hits)).as_json(constant),
        f"{name}/{at}_strings/{BASELINE}": right.as_json(guesses),
    }
    if task.grouped_by:
        groups = np.concatenate([e.groups[e.targets != NO_TARGET] for e in split.examples])
        hits, power = np.concatenate(split.hits), np.ceil(np.log2(groups)).astype(int)
        for p in np.unique(power):
            key = f"{name}/{at}_{task.grouped_by}_to_{2**p}/{BASELINE}"
            found[key] = statistics.proportion(hits[power == p]).as_json(rate)
    return found


def by_length(split: Split) -> list[dict[str, Any]]:
    """Strings right, by their length in steps of `_LENGTHS`."""
    bins: dict[int, list[bool]] = {}
    for example, row in zip(split.examples, split.hits, strict=True):
        bins.setdefault(-(-len(example.tokens) // _LENGTHS) * _LENGTHS, []).append(bool(row.all()))
    return [{"to": to, "strings": statistics.proportion(bins[to]).as_json()} for to in sorted(bins)]
