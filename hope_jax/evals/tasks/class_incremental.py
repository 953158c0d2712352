"""Class-incremental classification: classes arrive in steps, and after each all seen so far are told apart.

The protocol of the paper's CLINC, Banking and DBpedia experiments, for a model that is given the examples to
read and no more: no class is named anywhere else, and nothing but the arm's own means carries them.
- `carried`: examples are read with memories written, which go on from step to step;
- `reset`: memories of the newest step's examples alone;
- `control`: as `carried`, but unrelated texts, as long, in place of the examples;
- `no_memory`: the checkpoint as it is;
- `in_context`: no writes; as many examples of the classes seen as a training row holds stand before the
  utterance;
- `adamw`: the slow parameters, one pass over the same examples in the same order, at the best of a few
  learning rates by the likelihood of the right labels of other training texts after the last step.

What the rule of memorization says of writes holds for the first three. Test utterances are read without
writing. Each example is a document of its own: attention does not carry.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hope_jax.evals import statistics, transfer
from hope_jax.evals.arms.classes import Arm, Classifier
from hope_jax.evals.arms.finetune import learning_rates
from hope_jax.evals.arms.memorized import update_statistics
from hope_jax.evals.reading import updates
from hope_jax.evals.reading.memorize import as_settings
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.run import Run, item_key, outcome, progress
from hope_jax.evals.tasks.class_tasks import Task, tasks_of
from hope_jax.evals.tasks.labels import Scores
from hope_jax.evals.tasks.transfer_figures import class_incremental_figures

NAME = "class_incremental"
ARMS = ("carried", "reset", "control", "no_memory", "in_context", "adamw")


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome. Options: `intents`: folder of the data (see `intents`), required; `datasets`: which
    (default: those that are there); `examples`: training texts of a class (default 20); `tests`: test texts
    of a step's classes (default 150); `class_steps`: steps at most; `learning_rates` of AdamW. `run.limit`:
    bounds `examples` and `tests`.

    Raises:
      ConfigError: an option that is no such thing.
      DataError: files that are missing or not as published.
    """
    started = time.monotonic()
    own, rates, tasks = _asked(run)
    journal, reader = run.journal(NAME, own, started), Reader(run.subject, run.memorize)
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    curves, costs, items, written = {}, {}, [], {}
    for task in tasks:
        found, costs[task.name] = _all_arms(Classifier(run, reader, task), journal, rates)
        written[task.name] = update_statistics(found)
        of_task, of_tests, curves[task.name] = _summary(task, found)
        metrics, tests = metrics | of_task, tests | of_tests
        items += [
            {"key": f"{task.name}/{arm}/{i}", **r} for arm, rs in found.items() for i, r in enumerate(rs)
        ]
        items += _of_texts(task, found)
    result = outcome(
        run,
        NAME,
        settings=own,
        metrics=metrics,
        paired=tests,
        seconds=journal.seconds(),
        items=items,
        curves=curves,
        costs=costs,
        updates=written,
    )
    journal.close()
    return result


figures = class_incremental_figures


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, DataError for files."""
    _asked(run)


def _asked(run: Run) -> tuple[dict[str, Any], tuple[float, ...], list[Task]]:
    """The settings, the rates of AdamW, and the tasks."""
    tasks, own = tasks_of(run)
    rates = learning_rates(run.options)
    # All arms that write do, whether the arms of memorization are asked for or not
    more = {"learning_rates": list(rates), "arms": list(ARMS), "memorize": as_settings(run.memorize)}
    return {**own, **more}, rates, tasks


def _all_arms(
    classifier: Classifier, journal: Journal, rates: Sequence[float]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Of each arm a record a step, and what the learning rates gave."""
    task = classifier.task
    found = {name: _steps(journal, task, name, arm) for name, arm in classifier.arms().items()}

    def measure(rate: float) -> float:
        return classifier.right_labels_after_all(classifier.tuned(rate))

    validation = {rate: _validation(journal, task, rate, measure) for rate in rates}
    # A rate that diverged is the worst; NaN would compare with nothing.
    best = max(rates, key=lambda rate: np.nan_to_num(validation[rate], nan=-np.inf))
    found["adamw"] = _steps(journal, task, "adamw", classifier.tuned(best))
    about = {
        "learning_rate": best,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "read_tokens": sum(len(row) for rows in classifier.examples for row in rows),
        "seconds": {arm: sum(record["seconds"] for record in records) for arm, records in found.items()},
    }
    return found, about


def _validation(journal: Journal, task: Task, rate: float, measure: Callable[[float], float]) -> float:
    key = f"{task.name}/adamw@{rate:g}"
    record = journal.get(key)
    if record is None:
        record = {"right_label": measure(rate)}
        journal.put(key, record)
    return float(record["right_label"])


def _missing(journal: Journal, task: Task, arm: str) -> list[int]:
    return [i for i in range(len(task.steps)) if journal.get(f"{task.name}/{arm}/{i}") is None]


def _steps(journal: Journal, task: Task, name: str, arm: Arm) -> list[dict[str, Any]]:
    """The record of each step of one arm. Steps that the journal has are learned again where later ones need
    it, and not scored again."""
    due, state = _missing(journal, task, name), arm.state
    for step in range(due[-1] + 1 if due else 0):
        began = time.monotonic()
        state, written = arm.learn(state, step)
        if step in due:
            record = _record(task, arm.score(state, step), step)
            record |= {"seconds": time.monotonic() - began, "updates": updates.as_json(written)}
            journal.put(f"{task.name}/{name}/{step}", record)
            progress(NAME).info(
                "%s, %s, step %d of %d: accuracy %.3f among %d classes", task.name, name, step + 1,
                len(task.steps), float(np.mean(np.concatenate(record["raw"]))), record["classes"],
            )  # fmt: skip
    return [journal.get(f"{task.name}/{name}/{i}") or {} for i in range(len(task.steps))]


def _record(task: Task, scores: Scores, step: int) -> dict[str, Any]:
    """Hits by the step whose classes the test texts are of, raw and PMI, and the classes that were chosen."""
    known = [label for labels in task.steps[: step + 1] for label in labels]
    right = np.array([known.index(label) for pairs in task.test[: step + 1] for _, label in pairs])
    cuts = np.cumsum([len(pairs) for pairs in task.test[:step]], dtype=int)
    raw, pmi = scores.best(len(known))
    return {
        "classes": len(known),
        "raw": [[bool(hit) for hit in part] for part in np.split(raw == right, cuts)],
        "pmi": [[bool(hit) for hit in part] for part in np.split(pmi == right, cuts)],
        "chosen": [known[i] for i in pmi],
    }


def _of_texts(task: Task, found: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Of each test text and arm a record, with its hits after its own step and all later ones; those after
    the last step are the accuracy at the end, once."""
    last = len(task.steps) - 1
    for arm, records in found.items():
        for group, pairs in enumerate(task.test):
            for i, pair in enumerate(pairs):
                hits = {
                    f"accuracy_{kind}" + (f"_step_{step + 1}" if step < last else ""):
                        records[step][kind][group][i]
                    for kind in ("raw", "pmi") for step in range(group, last + 1)
                }  # fmt: skip
                key = item_key(f"{task.name}/step_{group + 1}/{i}", json.dumps(pair).encode())
                yield {"key": key, "arm": arm, "tasks": [task.name], **hits}


def _summary(
    task: Task, found: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Metrics, paired tests of the last step, and curves."""
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    count = len(task.steps)
    chances = [1 / record["classes"] for record in found["carried"]]
    curves: dict[str, Any] = {"accuracy": {}, "chance": chances}
    for arm, records in found.items():
        for kind in ("raw", "pmi"):
            hits = [[np.array(part) for part in record[kind]] for record in records]
            all_of = [np.concatenate(parts) for parts in hits]
            for step in range(count):
                key = f"{task.name}/accuracy_{kind}_step_{step + 1}/{arm}"
                metrics[key] = statistics.as_json(statistics.proportion(all_of[step]), chances[step])
            last = statistics.as_json(statistics.proportion(all_of[-1]), chances[-1])
            metrics[f"{task.name}/accuracy_{kind}/{arm}"] = last
            metrics[f"{task.name}/average_incremental_accuracy_{kind}/{arm}"] = statistics.as_json(
                _average_accuracy(hits), float(np.mean(chances))
            )
            forgot = _forgetting(hits)
            if forgot is not None:
                metrics[f"{task.name}/forgetting_{kind}/{arm}"] = statistics.as_json(forgot)
            curves["accuracy"][f"{arm}, {kind}"] = [float(step.mean()) for step in all_of]
    for kind in ("raw", "pmi"):
        for other in ARMS[1:]:
            pair = [np.concatenate(found[arm][-1][kind]) for arm in ("carried", other)]
            test = statistics.paired_as_json(statistics.paired(*pair))
            tests[f"{task.name}/accuracy_{kind}/carried-{other}"] = test
    return metrics, tests, curves


def _average_accuracy(hits: Sequence[Sequence[np.ndarray]]) -> statistics.Estimate:
    """hits: [step][step of the classes] -> bool [n]. Mean over steps of the accuracy among the classes seen.

    A text is asked after its own step and all later ones: what varies is each text's part of the whole, among
    the texts of its step. Texts of early steps weigh more, as they are in more of the accuracies."""
    count, sizes = len(hits), [sum(map(len, step)) for step in hits]
    weights = [sum(1 / (count * size) for size in sizes[group:]) for group in range(count)]
    parts = [
        np.sum([hits[step][group] / (count * sizes[step]) for step in range(group, count)], axis=0)
        for group in range(count)
    ]
    effective = 1 / sum(len(part) * weight**2 for part, weight in zip(parts, weights, strict=True))
    return statistics.within_one(statistics.total(parts), effective)


def _forgetting(hits: Sequence[Sequence[np.ndarray]]) -> statistics.Estimate | None:
    """hits: [step][step of the classes] -> bool [n]. The loss of accuracy on each step's classes from its
    best moment to the end, mean over steps; more classes to choose from alone make it positive."""
    count = len(hits)
    # Rows before a group's own step are placeholders, which `since` keeps out.
    table = [np.array([hits[max(step, group)][group] for step in range(count)]) for group in range(count)]
    return transfer.average(transfer.forgetting([1.0 - rows for rows in table], range(count)))
