"""Zero-shot tasks through EleutherAI's lm-eval: its tasks, prompts, metrics and normalisation.

Options: `zeroshot_data`, a folder of local files (without it lm-eval downloads); `zeroshot_tasks`, names of
`zeroshot_tasks.TASKS` separated by commas (without it all that have data); `zeroshot_max_length`, tokens that
a request may feed (without it no limit); `zeroshot_note`, words about the data for settings and reports.
docs/evals/zeroshot.md says what is measured.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.paths import as_path
from hope_jax.core.types import PyTree
from hope_jax.evals.arms.memorized import Records, run_arms, update_statistics
from hope_jax.evals.reading.subject import take
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.run import BASELINE, Run, outcome, progress
from hope_jax.evals.tasks import zeroshot_metrics as measures
from hope_jax.evals.tasks import zeroshot_tasks as sources
from hope_jax.evals.tasks.zeroshot_figures import figures

if TYPE_CHECKING:
    from hope_jax.evals.reading.lm_eval_model import HopeLM

NAME = "zeroshot"

__all__ = ["NAME", "evaluate", "figures"]


class Item(NamedTuple):
    """A document of a task. requests: lm-eval's, one for each candidate."""

    key: str
    task: Any
    requests: tuple[Any, ...]


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome: each task's own metrics in each arm, with chance and length-only baselines beside them.

    Raises:
      ConfigError: wrong options, or lm_eval is not installed.
      DataError: data that cannot be read or downloaded, or is not in the task's schema.
    """
    sources.require_lm_eval()
    from importlib.metadata import version

    from hope_jax.evals.reading.lm_eval_model import HopeLM

    began, log = time.monotonic(), progress(NAME)
    folder, max_length, selection = _asked(run)
    for line in selection.skipped:
        log.info("zeroshot: %s", line)
    settings = {
        "tasks": list(selection.tasks),
        "data": dict(selection.digests) if folder else "lm-eval's downloads",
        "max_length": max_length,
        "lm_eval": version("lm_eval"),
    }
    if note := run.options.get("zeroshot_note"):
        settings["note"] = str(note)
    model = HopeLM(run.subject, batch_size=run.batch_size, max_length=max_length)
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    updates: dict[str, Any] = {}
    truncated: dict[str, int] = {}
    requests: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    journal = run.journal(NAME, settings, began)
    try:
        with sources.load(selection) as tasks:
            for name, task in tasks.items():
                items = _items(name, task, run.limit)
                log.info("zeroshot: %s, %d items", name, len(items))
                records = _answers(run, journal, model, items)
                measured = measures.measure(name, task, items, records)
                metrics |= measured.metrics
                paired |= measured.paired
                updates[name] = update_statistics(records)
                cut = [model.is_cut(request) for item in items for request in item.requests]
                truncated[name], requests[name] = sum(cut), len(cut)
                rows += measured.rows
    finally:
        journal.close()
    return outcome(
        run,
        NAME,
        settings=settings,
        metrics=metrics,
        paired=paired,
        items=rows,
        seconds=journal.seconds(),
        skipped=list(selection.skipped),
        truncated=truncated,
        updates={name: found for name, found in updates.items() if found},
        notes=_notes(settings, selection.skipped, truncated, requests),
    )


def _notes(
    settings: Mapping[str, Any],
    skipped: Sequence[str],
    truncated: Mapping[str, int],
    requests: Mapping[str, int],
) -> list[str]:
    """What must be known of the data beside the figures."""
    notes = [f"About the data: {settings['note']}."] if "note" in settings else []
    notes += [f"{line}." for line in skipped]
    if settings["max_length"] is None:
        return [*notes, "No request was truncated."]
    counts = ", ".join(f"{name} {truncated[name]} of {requests[name]}" for name in requests)
    return [*notes, f"Requests truncated to zeroshot_max_length={settings['max_length']}: {counts}."]


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, or without lm_eval; DataError for a file."""
    sources.require_lm_eval()
    _asked(run)


def _asked(run: Run) -> tuple[Path | None, int | None, sources.Selection]:
    """The folder of data, the limit of tokens, and the tasks."""
    wanted, folder, max_length = _options(run)
    return folder, max_length, sources.select(wanted, folder)


def _options(run: Run) -> tuple[tuple[str, ...], Path | None, int | None]:
    """Names of tasks, folder of data, and limit of tokens."""
    wanted = run.options.get("zeroshot_tasks") or ()
    names = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    folder, limit = run.options.get("zeroshot_data"), run.options.get("zeroshot_max_length")
    if limit is not None and (not isinstance(limit, int) or limit < 2):
        raise ConfigError(f"zeroshot_max_length={limit}: want at least 2 tokens, or none for no limit")
    local = None if folder is None else as_path("zeroshot_data", str(folder))
    return tuple(name.strip() for name in names), local, limit


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


def _answers(run: Run, journal: Journal, model: "HopeLM", items: Sequence[Item]) -> Records:
    """Records of each arm in the items' order; "answers": what lm-eval gets for each request.

    Each task begins with the trained memories. A task whose items are texts without a context (wikitext) has
    nothing to memorize but its answer: it has the baseline alone, unless the answer is asked for.
    """
    leak = run.memorize.use_correct_answer
    rolling = items[0].requests[0].request_type == "loglikelihood_rolling"
    own = dataclasses.replace(run, arms=(BASELINE,)) if rolling and not leak else run
    # Items of like length side by side, where their order says nothing.
    order = list(items) if run.memorize.carry else sorted(items, key=_length)

    def text(item: Item) -> np.ndarray:
        return _memorized_text(model, item, leak)

    def score(batch: Sequence[Item], fast: PyTree | None) -> list[dict[str, Any]]:
        return _score(model, batch, fast)

    records = run_arms(own, journal, order, text, score)
    place = {item.key: i for i, item in enumerate(items)}
    return {arm: sorted(found, key=lambda record: place[record["key"]]) for arm, found in records.items()}


def _length(item: Item) -> int:
    return max(sum(map(len, request.args)) for request in item.requests)


def _score(model: "HopeLM", batch: Sequence[Item], fast: PyTree | None) -> list[dict[str, Any]]:
    """Every candidate starts from its item's memories and leaves nothing to another."""
    requests = [request for item in batch for request in item.requests]
    owners = [i for i, item in enumerate(batch) for _ in item.requests]
    answer = getattr(model, requests[0].request_type)
    found = answer(requests, fast=take(model.subject, fast, owners))
    answers = iter([list(one) if isinstance(one, tuple) else one for one in found])  # as JSON gives it back
    return [{"answers": [next(answers) for _ in item.requests]} for item in batch]


def _memorized_text(model: "HopeLM", item: Item, leak: bool) -> np.ndarray:
    """The tokens that an item's memory reads: what the contexts of its candidates have in common, as a rule
    all of it (in winogrande, where they differ, the sentence up to the blank). leak: the context and the
    correct continuation."""
    if leak:
        right = measures.correct(item.task, item.requests[0].doc, len(item.requests))
        return model.encode("".join(item.requests[right].args))
    contexts = [model.encode(text) for text in {request.args[0] for request in item.requests}]
    shortest = min(map(len, contexts))
    same = np.all([context[:shortest] == contexts[0][:shortest] for context in contexts], axis=0)
    return contexts[0][: shortest if same.all() else int(same.argmin())]
