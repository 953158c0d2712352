"""A synthetic task's answers: the task that the checkpoint was trained on, on strings that it has not read.

At test nothing is a target unless `synthetic_targets` asks for it: memories that teach signals drive would be
written with the answers of earlier online chunks, which of parity is all that later ones need. Memories that
write while they read write always. There is nothing to memorize beforehand: the one arm is the baseline.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.data.batches import host_batch
from hope_jax.data.synthetic import Example, Task, find_task
from hope_jax.data.synthetic.rows import padded, strings
from hope_jax.evals import statistics
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.options import whole_number
from hope_jax.evals.suite.run import BASELINE, Run, item_key, outcome, progress

NAME = "synthetic"

STRINGS = 500
"""Strings of a split, without a limit."""

_SEED = "held out"
"""Begins the seed of the strings, which training's seeds, being numbers, never equal."""

_NO_MEMORIZATION = (
    "Memorization does not apply: a string that has been read before would tell its answers, so there is the "
    "baseline alone."
)

_LENGTHS = 10
"""Tokens of a step of the curve over length."""


class Split(NamedTuple):
    """Strings and, for each, whether each answer asked for was right, bool [m]."""

    examples: list[Example]
    hits: list[np.ndarray]


def evaluate(run: Run) -> dict[str, Any]:
    """Answers on every split of the task: right per position and per string, by group and by length.

    options: `synthetic_strings`: of a split, default `STRINGS`; `synthetic_targets`: the answers of an online
    chunk are targets once it has been read.

    Raises:
      ConfigError: the checkpoint was trained on something else.
    """
    started, (name, task) = time.monotonic(), task_of(run.subject)
    notes = [] if run.arms == (BASELINE,) else [_NO_MEMORIZATION]
    run = dataclasses.replace(run, arms=(BASELINE,))
    count, targets = _options(run)
    settings = {"task": name, "strings": count, "targets": targets}
    journal, metrics, items = run.journal(NAME, settings, started), {}, []
    curves: dict[str, Any] = {}
    for at in task.splits:
        examples = strings(task, at, count, f"{_SEED} {run.seed}")
        key = "{}/{}".format
        missing = [i for i in range(len(examples)) if journal.get(key(at, i)) is None]
        size = run.subject.batch_size(run.batch_size)
        for start in range(0, len(missing), size):
            chosen = missing[start : start + size]
            found = answers(run.subject, [examples[i] for i in chosen], size, targets=targets)
            for i, given in zip(chosen, found, strict=True):
                journal.put(key(at, i), {"hits": (given == asked(examples[i])).astype(int).tolist()})
            if start // size % 10 == 0:
                progress(NAME).info("%s %s: %d of %d strings", name, at, start + len(chosen), len(missing))
        hits = [np.array((journal.get(key(at, i)) or {})["hits"], bool) for i in range(len(examples))]
        split = Split(examples, hits)
        metrics.update(measured(name, at, task, split))
        curves[at] = by_length(split)
        items += [record(name, at, i, *pair) for i, pair in enumerate(zip(examples, hits, strict=True))]
    result = outcome(
        run,
        NAME,
        settings=settings,
        metrics=metrics,
        seconds=journal.seconds(),
        items=items,
        by_length=curves,
        notes=notes,
    )
    journal.close()
    return result


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


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be."""
    _options(run)


def _options(run: Run) -> tuple[int, bool]:
    """Strings of a split, and whether answers are targets."""
    targets = run.options.get("synthetic_targets", False)
    if not isinstance(targets, bool):
        raise ConfigError(f"synthetic_targets={targets!r}: want true or false")
    count = whole_number(run.options, "synthetic_strings", STRINGS)
    return (count if run.limit is None else min(count, run.limit)), targets


def task_of(subject: Subject) -> tuple[str, Task]:
    """The name and the task of a checkpoint's configuration. Raises: ConfigError if it has none."""
    data = subject.config.data
    task = find_task(data.source, data.task_options, data.seq_len)
    if task is None:
        raise ConfigError(
            f"{subject.name} was trained on {data.source!r}, not on a synthetic task; evaluate a run of "
            "configs/synthetic/"
        )
    return data.source.partition(":")[2], task


def asked(example: Example) -> np.ndarray:
    """The answers that a string asks for, int32 [m]."""
    return example.targets[example.targets != NO_TARGET]


def answers(
    subject: Subject, examples: Sequence[Example], batch_size: int, *, targets: bool
) -> list[np.ndarray]:
    """The likeliest symbol at every position where something is asked, int64 [m] of each string.

    Strings are contexts of their own, padded on the right, where neither reads nor writes see it. targets:
    see `evaluate`.
    """
    trained = subject.trained
    streamer, size = trained.streamer, trained.streamer.rule.chunk_size
    width = size * -(-max(len(example.tokens) for example in examples) // size)
    rows = [padded(example, width) for example in examples]
    rows += [_padding(width)] * (batch_size - len(rows))
    batch = host_batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))
    if not targets:
        none = np.full(np.shape(batch.targets), NO_TARGET, np.int32)
        batch = host_batch(np.asarray(batch.tokens), none, np.asarray(batch.segment_ids))
    # The stream's own call would take the next token for the target.
    state = streamer.begin(trained.params, len(rows), width, trained.fast)
    logits, _ = streamer.write_chunks(trained.params, state, batch)
    likeliest = np.asarray(logits.argmax(-1))
    return [
        likeliest[i, : len(example.tokens)][example.targets != NO_TARGET]
        for i, example in enumerate(examples)
    ]


def _padding(width: int) -> Batch:
    zeros = np.zeros(width, np.int32)
    return host_batch(zeros, np.full_like(zeros, NO_TARGET), zeros)


def measured(name: str, at: str, task: Task, split: Split) -> dict[str, dict[str, Any]]:
    """The metrics of a split. Positions: mean over strings of the share of right answers, whose chance is
    that of the best constant answer; strings: all answers right, whose chance is that of guesses as good."""
    labels = np.concatenate([asked(example) for example in split.examples])
    best = np.bincount(labels).argmax()
    constant = [float((asked(example) == best).mean()) for example in split.examples]
    rate = float((labels == best).mean())
    guesses = float(np.mean([rate ** len(row) for row in split.hits]))
    right = statistics.proportion([bool(row.all()) for row in split.hits])
    means = statistics.mean([float(row.mean()) for row in split.hits])
    shares = statistics.within_one(means, len(split.hits))
    found = {
        f"{name}/{at}_positions/{BASELINE}": statistics.as_json(shares, float(np.mean(constant))),
        f"{name}/{at}_strings/{BASELINE}": statistics.as_json(right, guesses),
    }
    if task.grouped_by:
        groups = np.concatenate([e.groups[e.targets != NO_TARGET] for e in split.examples])
        hits, power = np.concatenate(split.hits), np.ceil(np.log2(groups)).astype(int)
        for p in np.unique(power):
            share = statistics.proportion(hits[power == p])
            key = f"{name}/{at}_{task.grouped_by}_to_{2**p}/{BASELINE}"
            found[key] = statistics.as_json(share, rate)
    return found


def by_length(split: Split) -> list[dict[str, Any]]:
    """Strings right, by their length in steps of `_LENGTHS`."""
    bins: dict[int, list[bool]] = {}
    for example, row in zip(split.examples, split.hits, strict=True):
        bins.setdefault(-(-len(example.tokens) // _LENGTHS) * _LENGTHS, []).append(bool(row.all()))
    return [
        {"to": longest, "strings": statistics.as_json(statistics.proportion(bins[longest]))}
        for longest in sorted(bins)
    ]


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Strings right over length, where the splits have strings of several lengths."""
    points = [
        (at, step["to"], step["strings"]) for at, steps in result["by_length"].items() for step in steps
    ]
    if len({longest for _, longest, _ in points}) < 3:
        return {}
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for at in result["by_length"]:
        own = [(longest, share) for name, longest, share in points if name == at]
        x, y = [longest for longest, _ in own], np.array([share["value"] for _, share in own])
        bounds = np.array([share["ci95"] for _, share in own]).T
        axes.errorbar(x, y, yerr=np.abs(bounds - y), marker="o", capsize=2, label=at)
    axes.set(xlabel="tokens of the string, up to", ylabel="strings right", ylim=(-0.05, 1.05))
    axes.set_title(result["settings"]["task"])
    axes.legend()
    return {"synthetic": figure}
