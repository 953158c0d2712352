"""What lm-eval's tasks say of answers: metrics with intervals, chance, and baselines of length alone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hope_jax.evals import statistics
from hope_jax.evals.arms.memorized import Records, compare

LENGTH_ONLY, MAJORITY = "length_only", "majority_class"
"""Arms without a model: log p = -bytes of the continuation; always the most frequent answer."""

_SHARES = ("acc", "acc_norm")
_RATIOS = ("word_perplexity", "byte_perplexity", "bits_per_byte")

Tables = tuple[dict[str, Any], dict[str, Any]]
"""Metrics and paired tests, as in an outcome."""


class Item(Protocol):
    """A document and lm-eval's requests of it."""

    @property
    def key(self) -> str:
        """Of the records."""
        ...

    @property
    def requests(self) -> tuple[Any, ...]:
        """One for each candidate."""
        ...


class Measured(NamedTuple):
    """metrics, paired: as in an outcome. rows: a record for each item and arm."""

    metrics: dict[str, Any]
    paired: dict[str, Any]
    rows: list[dict[str, Any]]


def measure(name: str, task: Any, items: Sequence[Item], records: Records) -> Measured:
    """The metrics of a task, found by its own `process_results`.

    task: lm-eval's. records: of each arm, with "answers" in the form that lm-eval wants.
    """
    scored: Records = {}
    for arm, found in records.items():
        scored[arm] = [
            {**task.process_results(item.requests[0].doc, _answers(record)), "key": item.key}
            for item, record in zip(items, found, strict=True)
        ]
    form = {"multiple_choice": _choices, "loglikelihood": _last_words, "loglikelihood_rolling": _texts}
    metrics, paired = form[task.OUTPUT_TYPE](name, task, items, scored)
    rows = [
        {**_plain(values), **_scalars(values), **record, "arm": arm}
        for arm, found in records.items()
        for values, record in zip(scored[arm], found, strict=True)
    ]
    return Measured(metrics, paired, rows)


def correct(task: Any, doc: Any, candidates: int) -> int:
    """Position of the right candidate; 0 where there is one candidate."""
    if candidates == 1:
        return 0
    found = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return task.doc_to_choice(doc).index(found) if isinstance(found, str) else int(found)


def _answers(record: dict[str, Any]) -> list[Any]:
    return [tuple(answer) if isinstance(answer, list) else answer for answer in record["answers"]]


def _choices(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Shares of right choices; chance is one in as many as there are choices, on average."""
    chance = math.fsum(1 / len(item.requests) for item in items) / len(items)
    by_length = [
        task.process_results(item.requests[0].doc, [(-len(r.args[1].encode()), False) for r in item.requests])
        for item in items
    ]
    arms = {**scored, LENGTH_ONLY: by_length}
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    for metric in _SHARES:
        if metric in by_length[0]:
            hits = {arm: [{metric: bool(v[metric])} for v in values] for arm, values in arms.items()}
            found = compare(hits, metric, f"{name}/{metric}", chance)
            metrics |= found[0]
            paired |= found[1]
    # Of the whole split: a few items always have a most frequent answer.
    documents = list(task.eval_docs)
    answers = {tuple(task.doc_to_choice(document)) for document in documents}
    if len(answers) == 1 and len(documents) > 1:
        right = [correct(task, document, len(items[0].requests)) for document in documents]
        most = max(set(right), key=right.count)
        share = statistics.proportion([answer == most for answer in right])
        metrics[f"{name}/acc/{MAJORITY}"] = statistics.as_json(share, chance)
    return metrics, paired


def _last_words(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Of lambada: the share of last words that greedy reading gives, and their perplexity."""
    hits = {arm: [{"acc": bool(v["acc"])} for v in values] for arm, values in scored.items()}
    metrics, paired = compare(hits, "acc", f"{name}/acc")
    logs = {arm: [_scalars(v) for v in values] for arm, values in scored.items()}
    of_logs, tests = compare(logs, "log_prob", f"{name}/log_prob")
    for arm, values in logs.items():
        mean = statistics.mean([v["log_prob"] for v in values])
        metrics[f"{name}/perplexity/{arm}"] = statistics.as_json(_exponential(mean, -1.0))
    return {**metrics, **of_logs}, {**paired, **tests}


def _texts(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Of wikitext: perplexities of all texts together, and a paired test of each text's bits per byte."""
    metrics: dict[str, Any] = {}
    for metric in _RATIOS:
        for arm, values in scored.items():
            per_unit = _ratio([v[metric] for v in values])
            found = _exponential(per_unit, -1.0)
            if metric == "bits_per_byte":
                low, high = -per_unit.high / math.log(2), -per_unit.low / math.log(2)
                found = statistics.Estimate(-per_unit.value / math.log(2), low, high, per_unit.n)
            metrics[f"{name}/{metric}/{arm}"] = statistics.as_json(found)
    bits = {arm: [_scalars(v) for v in values] for arm, values in scored.items()}
    return metrics, compare(bits, "bits_per_byte", f"{name}/bits_per_byte")[1]


def _ratio(pairs: Sequence[tuple[float, float]]) -> statistics.Estimate:
    """Sum of the first over sum of the second, its interval that of a ratio of sums (linearised)."""
    log_probs, counts = (np.asarray(column, np.float64) for column in zip(*pairs, strict=True))
    value = float(log_probs.sum() / counts.sum())
    around = statistics.mean((log_probs - value * counts) / counts.mean())
    return statistics.Estimate(value, value + around.low, value + around.high, len(pairs))


def _exponential(estimate: statistics.Estimate, sign: float) -> statistics.Estimate:
    """exp(sign x estimate), its interval with it; at most e^700, as JSON has no infinity."""
    value, *bounds = (math.exp(min(sign * x, 700.0)) for x in estimate[:3])
    return statistics.Estimate(value, min(bounds), max(bounds), estimate.n)


def _scalars(values: dict[str, Any]) -> dict[str, float]:
    """What an item alone has where lm-eval's value is a part of a ratio, or of a mean that it exponentiates:
    a last word's `log_prob` in nats, a text's `bits_per_byte`."""
    found = {}
    if "perplexity" in values:
        found["log_prob"] = float(values["perplexity"])
    if "bits_per_byte" in values:
        log_prob, size = values["bits_per_byte"]
        found["bits_per_byte"] = -log_prob / size / math.log(2)
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's values of an item as JSON."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
