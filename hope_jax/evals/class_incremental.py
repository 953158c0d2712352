"""Class-incremental classification: classes arrive in steps, and after each all seen so far are told apart.

The protocol of the paper's CLINC, Banking and DBpedia experiments, for a model that is given the examples to
read and no more: no class is named anywhere else, and nothing but the arm's own means carries them.
- `carried`: examples are read with memories written, which go on from step to step;
- `reset`: memories of the newest step's examples alone;
- `no_memory`: the checkpoint as it is;
- `in_context`: no writes; as many examples of the classes seen as a training row holds stand before the
  utterance;
- `adamw`: the slow parameters, one pass over the same examples in the same order, at the best of a few
  learning rates by the likelihood of the right labels of other training texts after the last step.

Test utterances are read without writing. Each example is a document of its own: attention does not carry.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hope_jax.evals import statistics, transfer
from hope_jax.evals.class_tasks import Task, in_context_examples, tasks_of
from hope_jax.evals.finetune import Tuned, Tuner, learning_rates
from hope_jax.evals.journal import Journal
from hope_jax.evals.labels import Format, Scores, right_labels, score_labels
from hope_jax.evals.reader import Reader
from hope_jax.evals.run import Run, outcome, progress
from hope_jax.evals.transfer_figures import class_incremental_figures
from hope_jax.types import PyTree

NAME = "class_incremental"
ARMS = ("carried", "reset", "no_memory", "in_context", "adamw")


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
    tasks, own = tasks_of(run)
    rates = learning_rates(run.options)
    own |= {"learning_rates": list(rates)}
    journal, reader = run.journal(NAME, own), Reader(run.subject)
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    curves, costs, items = {}, {}, []
    for task in tasks:
        found, costs[task.name] = _all_arms(run, journal, reader, task, rates)
        of_task, of_tests, curves[task.name] = _summary(task, found)
        metrics, tests = metrics | of_task, tests | of_tests
        items += [
            {"key": f"{task.name}/{arm}/{i}", **r} for arm, rs in found.items() for i, r in enumerate(rs)
        ]
    result = outcome(
        run,
        NAME,
        settings=own,
        metrics=metrics,
        paired=tests,
        seconds=time.monotonic() - started,
        items=items,
        curves=curves,
        costs=costs,
    )
    journal.close()
    return result


figures = class_incremental_figures


def _all_arms(
    run: Run, journal: Journal, reader: Reader, task: Task, rates: Sequence[float]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Of each arm a record a step, and what the learning rates gave."""
    params, initial = run.subject.trained.params, reader.start(run.subject.trained.params)
    longest = run.subject.config.data.seq_len
    labels = [len(Format(reader.tokenizer, 0).example("", label)) for label in task.classes]
    form = Format(reader.tokenizer, max(1, longest - 1 - max(labels)))
    examples = [[form.example(*pair) for pair in pairs] for pairs in task.train]

    def score(params: PyTree, fast: PyTree, step: int, prefix: Any = None) -> Scores:
        texts = [text for pairs in task.test[: step + 1] for text, _ in pairs]
        known = [label for step in task.steps[: step + 1] for label in step]
        return score_labels(reader, params, fast, form, texts, known, prefix)

    def carried(fast: PyTree, step: int) -> PyTree:
        return reader.read_on(params, fast, examples[step])[1]

    def in_context(_: Any, step: int) -> Scores:
        tokens = in_context_examples(task, form, step, longest, np.random.default_rng([run.seed, step, 2]))
        return score(params, initial, step, reader.prefix(params, initial, tokens, longest))

    every = score(params, initial, len(task.steps) - 1) if _missing(journal, task, "no_memory") else None
    tuner = Tuner(reader, longest)

    def tuned(state: Tuned, step: int) -> Tuned:
        return tuner.read_on(state, examples[step])[1]

    def carry(fast: PyTree, step: int) -> Scores:
        return score(params, fast, step)

    def steps(
        arm: str, state: Any, learn: Callable[[Any, int], Any], score: Callable[[Any, int], Scores]
    ) -> Any:
        return _steps(journal, task, arm, state, learn, score)

    found = {
        "carried": steps("carried", initial, carried, carry),
        "reset": steps("reset", initial, lambda _, step: carried(initial, step), carry),
        "no_memory": steps("no_memory", None, _nothing, lambda _, step: _until(task, every, step)),
        "in_context": steps("in_context", None, _nothing, in_context),
    }

    def after_all(rate: float) -> float:
        state = tuner.begin(params, rate)
        for step in range(len(task.steps)):
            state = tuned(state, step)
        pairs = [pair for pairs in task.validation for pair in pairs] or task.train[-1]
        return right_labels(reader, state.params, reader.start(state.params), form, pairs)

    validation = {rate: _validation(journal, task, rate, after_all) for rate in rates}
    # A rate that diverged is the worst; NaN would compare with nothing.
    best = max(rates, key=lambda rate: np.nan_to_num(validation[rate], nan=-np.inf))
    found["adamw"] = steps(
        "adamw",
        tuner.begin(params, best),
        tuned,
        lambda state, step: score(state.params, reader.start(state.params), step),
    )
    about = {
        "learning_rate": best,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "read_tokens": sum(len(row) for rows in examples for row in rows),
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


def _nothing(state: Any, _: int) -> Any:
    """What an arm learns that keeps no state."""
    return state


def _missing(journal: Journal, task: Task, arm: str) -> list[int]:
    return [i for i in range(len(task.steps)) if journal.get(f"{task.name}/{arm}/{i}") is None]


def _steps(
    journal: Journal,
    task: Task,
    arm: str,
    state: Any,
    learn: Callable[[Any, int], Any],
    score: Callable[[Any, int], Scores],
) -> list[dict[str, Any]]:
    """The record of each step of one arm. Steps that the journal has are learned again where later ones need
    it, and not scored again."""
    due = _missing(journal, task, arm)
    for step in range(due[-1] + 1 if due else 0):
        began = time.monotonic()
        state = learn(state, step)
        if step in due:
            record = _record(task, score(state, step), step)
            journal.put(f"{task.name}/{arm}/{step}", {**record, "seconds": time.monotonic() - began})
            progress(NAME).info(
                "%s, %s, step %d of %d: accuracy %.3f among %d classes", task.name, arm, step + 1,
                len(task.steps), float(np.mean(np.concatenate(record["raw"]))), record["classes"],
            )  # fmt: skip
    return [journal.get(f"{task.name}/{arm}/{i}") or {} for i in range(len(task.steps))]


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


def _until(task: Task, scores: Scores | None, step: int) -> Scores:
    """Of scores after the last step those of the test texts until `step`."""
    assert scores is not None
    count = sum(len(pairs) for pairs in task.test[: step + 1])
    return Scores(scores.raw[:count], scores.pmi[:count])


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
            mean = transfer.average([statistics.mean(step.astype(float)) for step in all_of])
            assert mean is not None
            metrics[f"{task.name}/average_incremental_accuracy_{kind}/{arm}"] = statistics.as_json(
                mean, float(np.mean(chances))
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


def _forgetting(hits: Sequence[Sequence[np.ndarray]]) -> statistics.Estimate | None:
    """hits: [step][step of the classes] -> bool [n]. The loss of accuracy on each step's classes from its
    best moment to the end, mean over steps; more classes to choose from alone make it positive."""
    count = len(hits)
    # Rows before a group's own step are placeholders, which `since` keeps out.
    table = [np.array([hits[max(step, group)][group] for step in range(count)]) for group in range(count)]
    return transfer.average(transfer.forgetting([1.0 - rows for rows in table], range(count)))
