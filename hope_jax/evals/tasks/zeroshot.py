"""Zero-shot tasks through EleutherAI's lm-eval: its tasks, prompts, metrics and normalisation
(docs/evals/zeroshot.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.paths import as_path
from hope_jax.core.types import PyTree
from hope_jax.evals import statistics
from hope_jax.evals.reading.subject import take
from hope_jax.evals.suite.plots import LENGTH_ONLY, MAJORITY
from hope_jax.evals.suite.run import BASELINE, Journal, Run, evaluation, listed, progress
from hope_jax.evals.tasks import zeroshot_tasks as sources
from hope_jax.evals.tasks.arms import Records, Tables, compare, run_arms, update_statistics
from hope_jax.evals.tasks.curves import zeroshot_figures

if TYPE_CHECKING:
    from hope_jax.evals.reading.lm_eval_model import HopeLM

NAME = "zeroshot"
_SHARES = ("acc", "acc_norm")
_RATIOS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


class Item(NamedTuple):
    """A document of a task. requests: lm-eval's, one for each candidate."""

    key: str
    task: Any
    requests: tuple[Any, ...]


def _asked(run: Run) -> tuple[dict[str, Any], sources.Selection]:
    """The settings and the tasks. Raises: ConfigError also without lm_eval."""
    sources.require_lm_eval()
    from importlib.metadata import version

    limit = run.options.get("zeroshot_max_length")
    if limit is not None and (not isinstance(limit, int) or limit < 2):
        raise ConfigError(f"zeroshot_max_length={limit}: want at least 2 tokens, or none for no limit")
    data, note = run.options.get("zeroshot_data"), run.options.get("zeroshot_note")
    folder = None if data is None else as_path("zeroshot_data", str(data))
    selection = sources.select(listed(run.options, "zeroshot_tasks") or (), folder)
    settings = {
        "tasks": list(selection.tasks),
        "data": dict(selection.digests) if folder else "lm-eval's downloads",
        "max_length": limit,
        "lm_eval": version("lm_eval"),
    }
    return settings | ({"note": str(note)} if note else {}), selection


@evaluation(NAME, _asked, zeroshot_figures)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], selection: sources.Selection
) -> dict[str, Any]:
    """Each task's own metrics in each arm, with chance and length-only baselines beside them. Raises:
    DataError also for data that lm-eval cannot load."""
    from hope_jax.evals.reading.lm_eval_model import HopeLM

    log, skipped, limit = progress(NAME), list(selection.skipped), settings["max_length"]
    for line in skipped:
        log.info("zeroshot: %s", line)
    model = HopeLM(run.subject, batch_size=run.batch_size, max_length=limit)
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    updates: dict[str, Any] = {}
    cut: dict[str, list[bool]] = {}
    rows: list[dict[str, Any]] = []
    with sources.load(selection) as tasks:
        for name, task in tasks.items():
            items = _items(name, task, run.limit)
            log.info("zeroshot: %s, %d items", name, len(items))
            records = _records(run, journal, model, items)
            found, tests, of_items = measure(name, task, items, records)
            metrics |= found
            paired |= tests
            rows += of_items
            updates |= {name: written} if (written := update_statistics(records)) else {}
            cut[name] = [model.is_cut(request) for item in items for request in item.requests]
    notes = [f"About the data: {settings['note']}."] if "note" in settings else []
    notes += [f"{line}." for line in skipped]
    if limit is None:
        notes.append("No request was truncated.")
    else:
        counts = ", ".join(f"{name} {sum(of)} of {len(of)}" for name, of in cut.items())
        notes.append(f"Requests truncated to zeroshot_max_length={limit}: {counts}.")
    return {
        "metrics": metrics,
        "paired": paired,
        "items": rows,
        "skipped": skipped,
        "truncated": {name: sum(of) for name, of in cut.items()},
        "updates": updates,
        "notes": notes,
    }


def _items(name: str, task: Any, limit: int | None) -> list[Item]:
    """The first documents of the task's split, in order. Raises: DataError."""
    try:
        task.build_all_requests(limit=limit)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{name}: lm-eval makes no requests of the data ({error!r}); mend it") from error
    documents: dict[int, list[Any]] = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    return [Item(f"{name}/{i}", task, tuple(requests)) for i, requests in documents.items()]


def _records(run: Run, journal: Journal, model: "HopeLM", items: Sequence[Item]) -> Records:
    """Records of each arm in the items' order; "answers": what lm-eval gets for each request. Each task
    begins with the trained memories. A task whose items are texts without a context (wikitext) has nothing to
    memorize but its answer: it has the baseline alone, unless the answer is asked for."""
    leak = run.memorize.use_correct_answer
    rolling = items[0].requests[0].request_type == "loglikelihood_rolling"
    own = replace(run, arms=(BASELINE,)) if rolling and not leak else run

    def length(item: Item) -> int:
        return max(sum(map(len, request.args)) for request in item.requests)

    def text(item: Item) -> np.ndarray:
        return _memorized_text(model, item, leak)

    def score(batch: Sequence[Item], fast: PyTree | None) -> list[dict[str, Any]]:
        """Every candidate starts from its item's memories and leaves nothing to another."""
        requests = [request for item in batch for request in item.requests]
        owners = [i for i, item in enumerate(batch) for _ in item.requests]
        answer = getattr(model, requests[0].request_type)
        found = answer(requests, fast=take(model.subject, fast, owners))
        answers = iter([list(one) if isinstance(one, tuple) else one for one in found])  # as JSON gives it
        return [{"answers": [next(answers) for _ in item.requests]} for item in batch]

    # Items of like length side by side, where their order says nothing.
    order = list(items) if run.memorize.carry else sorted(items, key=length)
    records = run_arms(own, journal, order, text, score)
    place = {item.key: i for i, item in enumerate(items)}
    return {arm: sorted(found, key=lambda record: place[record["key"]]) for arm, found in records.items()}


def _memorized_text(model: "HopeLM", item: Item, leak: bool) -> np.ndarray:
    """The tokens that an item's memory reads: what the contexts of its candidates have in common, as a rule
    all of it (in winogrande, where they differ, the sentence up to the blank). leak: the context and the
    correct continuation."""
    if leak:
        right = _correct(item.task, item.requests[0].doc, len(item.requests))
        return model.encode("".join(item.requests[right].args))
    contexts = [model.encode(text) for text in {request.args[0] for request in item.requests}]
    shortest = min(map(len, contexts))
    same = np.all([context[:shortest] == contexts[0][:shortest] for context in contexts], axis=0)
    return contexts[0][: shortest if same.all() else int(same.argmin())]


def _correct(task: Any, doc: Any, candidates: int) -> int:
    """Position of the right candidate; 0 where there is one candidate."""
    if candidates == 1:
        return 0
    found = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return task.doc_to_choice(doc).index(found) if isinstance(found, str) else int(found)


def measure(
    name: str, task: Any, items: Sequence[Item], records: Records
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Metrics and paired tests of a task, found by its own `process_results`, and a record for each item and
    arm."""

    def processed(item: Item, record: Mapping[str, Any]) -> dict[str, Any]:
        answers = [tuple(answer) if isinstance(answer, list) else answer for answer in record["answers"]]
        return dict(task.process_results(item.requests[0].doc, answers))

    scored = {
        arm: [processed(item, record) for item, record in zip(items, found, strict=True)]
        for arm, found in records.items()
    }
    form = {"multiple_choice": _choices, "loglikelihood": _last_words, "loglikelihood_rolling": _texts}
    rows = []
    for arm, found in records.items():
        for values, record in zip(scored[arm], found, strict=True):
            plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
            rows.append({**plain, **_scalars(values), **record, "arm": arm})
    return *form[task.OUTPUT_TYPE](name, task, items, scored), rows


def _choices(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Shares of right choices; chance is one in as many as there are choices, on average."""
    chance = math.fsum(1 / len(item.requests) for item in items) / len(items)
    by_length = [
        task.process_results(item.requests[0].doc, [(-len(r.args[1].encode()), False) for r in item.requests])
        for item in items
    ]
    shares = [metric for metric in _SHARES if metric in by_length[0]]
    hits = {
        arm: [{metric: bool(v[metric]) for metric in shares} for v in values]
        for arm, values in {**scored, LENGTH_ONLY: by_length}.items()
    }
    metrics, paired = compare(hits, name, dict.fromkeys(shares, chance))
    # Of the whole split: a few items always have a most frequent answer.
    documents = list(task.eval_docs)
    if len({tuple(task.doc_to_choice(document)) for document in documents}) == 1 < len(documents):
        right = [_correct(task, document, len(items[0].requests)) for document in documents]
        most = max(set(right), key=right.count)
        share = statistics.proportion([answer == most for answer in right])
        metrics[f"{name}/acc/{MAJORITY}"] = share.as_json(chance)
    return metrics, paired


def _last_words(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Of lambada: the share of last words that greedy reading gives, and their perplexity."""
    found = {arm: [{"acc": bool(v["acc"]), **_scalars(v)} for v in values] for arm, values in scored.items()}
    metrics, paired = compare(found, name, {"acc": None, "log_prob": None})
    for arm, values in found.items():
        mean = statistics.mean([v["log_prob"] for v in values])
        metrics[f"{name}/perplexity/{arm}"] = mean.mapped(_inverse_exponential)
    return metrics, paired


def _texts(name: str, task: Any, items: Sequence[Item], scored: Records) -> Tables:
    """Of wikitext: perplexities of all texts together, and a paired test of each text's bits per byte."""
    metrics: dict[str, Any] = {}
    for metric in _RATIOS:
        for arm, values in scored.items():
            per_unit = statistics.ratio(*np.array([v[metric] for v in values], np.float64).T)
            bits = metric == "bits_per_byte"
            found = (
                per_unit.mapped(lambda x: -x / math.log(2)) if bits else per_unit.mapped(_inverse_exponential)
            )
            metrics[f"{name}/{metric}/{arm}"] = found
    of_texts = {arm: [_scalars(v) for v in values] for arm, values in scored.items()}
    return metrics, compare(of_texts, name, {"bits_per_byte": None})[1]


def _inverse_exponential(log_prob: float) -> float:
    """e to the minus log_prob; at most e^700, as JSON has no infinity."""
    return math.exp(min(-log_prob, 700.0))


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """What an item alone has where lm-eval's value is a part of a ratio, or of a mean that it exponentiates:
    a last word's `log_prob` in nats, a text's `bits_per_byte`."""
    found = {}
    if "perplexity" in values:
        found["log_prob"] = float(values["perplexity"])
    if "bits_per_byte" in values:
        log_prob, size = values["bits_per_byte"]
        found["bits_per_byte"] = -log_prob / size / math.log(2)
    return found
