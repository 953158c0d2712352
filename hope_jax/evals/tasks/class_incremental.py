"""Class-incremental classification: classes arrive in steps, and after each all seen so far are told apart
(docs/evals/continual.md). No class is named anywhere but in the examples that the model is given to read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hope_jax.evals import statistics, transfer
from hope_jax.evals.reading.memorize import as_settings
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.suite.run import Journal, Run, evaluation, item_key
from hope_jax.evals.tasks.arms import Arm, Records, run_steps, update_statistics
from hope_jax.evals.tasks.classifier import Classifier
from hope_jax.evals.tasks.curves import class_incremental_figures
from hope_jax.evals.tasks.finetune import best_rate, learning_rates
from hope_jax.evals.tasks.intents import Task, tasks_of

NAME = "class_incremental"
ARMS = ("carried", "reset", "control", "no_memory", "in_context", "adamw")


def _asked(run: Run) -> tuple[dict[str, Any], tuple[float, ...], list[Task]]:
    """The settings, the rates of AdamW, and the tasks."""
    tasks, own = tasks_of(run)
    rates = learning_rates(run.options)
    # All arms that write do, whether the arms of memorization are asked for or not
    more = {"learning_rates": list(rates), "arms": list(ARMS), "memorize": as_settings(run.memorize)}
    return {**own, **more}, rates, tasks


@evaluation(NAME, _asked, class_incremental_figures)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], rates: Sequence[float], tasks: list[Task]
) -> dict[str, Any]:
    """What is measured. `run.limit`: bounds `examples` and `tests`."""
    reader = Reader(run.subject, run.memorize)
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    curves, costs, items, written = {}, {}, [], {}
    for task in tasks:
        found, costs[task.name] = _all_arms(Classifier(run, reader, task), journal, rates)
        written[task.name] = update_statistics(found)
        of_task, of_tests, curves[task.name] = _summary(task, found)
        metrics, tests = metrics | of_task, tests | of_tests
        for arm, records in found.items():
            items += [{"key": f"{task.name}/{arm}/{i}", **record} for i, record in enumerate(records)]
        items += _of_texts(task, found)
    return {
        "metrics": metrics,
        "paired": tests,
        "items": items,
        "curves": curves,
        "costs": costs,
        "updates": written,
    }


def _all_arms(
    classifier: Classifier, journal: Journal, rates: Sequence[float]
) -> tuple[Records, dict[str, Any]]:
    """Of each arm a record a step, and what the learning rates gave."""
    task, count = classifier.task, len(classifier.task.steps)

    def records(name: str, arm: Arm) -> list[dict[str, Any]]:
        def told(record: Mapping[str, Any]) -> str:
            return f"accuracy {np.mean(sum(record['raw'], [])):.3f} among {record['classes']} classes"

        return run_steps(journal, f"{task.name}/{name}", arm, count, told)

    def validated(rate: float) -> float:
        key = f"{task.name}/adamw@{rate:g}"
        record = journal.once(key, lambda: {"right_label": classifier.right_labels_after_all(rate)})
        return float(record["right_label"])

    found = {name: records(name, arm) for name, arm in classifier.arms().items()}
    validation = {rate: validated(rate) for rate in rates}
    best = best_rate({rate: -value for rate, value in validation.items()})
    found["adamw"] = records("adamw", classifier.tuned(best))
    about = {
        "learning_rate": best,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "read_tokens": sum(len(row) for rows in classifier.examples for row in rows),
        "seconds": {arm: sum(record["seconds"] for record in of_arm) for arm, of_arm in found.items()},
    }
    return found, about


def _of_texts(task: Task, found: Records) -> Iterator[dict[str, Any]]:
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


def _summary(task: Task, found: Records) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Metrics, paired tests of the last step, and curves."""
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    chances = [1 / record["classes"] for record in found["carried"]]
    curves: dict[str, Any] = {"accuracy": {}, "chance": chances}
    ends: dict[tuple[str, str], np.ndarray] = {}
    for arm, records in found.items():
        for kind in ("raw", "pmi"):
            hits = [[np.array(part) for part in record[kind]] for record in records]
            all_of = [np.concatenate(parts) for parts in hits]
            accuracies = [
                statistics.proportion(part).as_json(chance)
                for part, chance in zip(all_of, chances, strict=True)
            ]
            for step, accuracy in enumerate(accuracies, 1):
                metrics[f"{task.name}/accuracy_{kind}_step_{step}/{arm}"] = accuracy
            metrics[f"{task.name}/accuracy_{kind}/{arm}"] = accuracies[-1]
            average = _average_accuracy(hits).as_json(float(np.mean(chances)))
            metrics[f"{task.name}/average_incremental_accuracy_{kind}/{arm}"] = average
            if (forgot := _forgetting(hits)) is not None:
                metrics[f"{task.name}/forgetting_{kind}/{arm}"] = forgot
            curves["accuracy"][f"{arm}, {kind}"] = [float(step.mean()) for step in all_of]
            ends[arm, kind] = all_of[-1]
    for kind in ("raw", "pmi"):
        for other in ARMS[1:]:
            test = statistics.paired(ends["carried", kind], ends[other, kind])
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
