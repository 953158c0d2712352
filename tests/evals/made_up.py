"""Evaluations made up for tests of the suite: real log-likelihoods of short texts, and ways to fail."""

import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hope_jax.core.errors import DataError
from hope_jax.core.types import PyTree
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.suite import registry
from hope_jax.evals.suite.registry import Entry
from hope_jax.evals.suite.run import Run, outcome
from hope_jax.evals.tasks.arms import compare, run_arms, update_statistics

TEXTS = ("In the beginning", "Let there be light", "And God said", "It is a truth", "Call me", "The king")


class Text(NamedTuple):
    key: str
    tokens: np.ndarray


class Counter:
    """Calls and scored items, by name; `kill_after`: scored items after which the process is "killed"."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.scored = 0
        self.kill_after: int | None = None


class Killed(BaseException):
    """As a signal: no `except Exception` catches it."""


def texts_module(counter: Counter, name: str = "texts", *, draws: bool = True) -> ModuleType:
    """Scores `TEXTS`: "loss" (a mean) and "low" (a share, chance 0.5), with a journal, in all arms."""
    module = ModuleType(f"made_up_{name}")

    def evaluate(run: Run) -> dict[str, Any]:
        counter.calls[name] = counter.calls.get(name, 0) + 1
        began, tokenizer = time.monotonic(), run.subject.trained.tokenizer
        items = [Text(text, tokenizer.encode(text)) for text in TEXTS[: run.limit]]
        settings = {"scale": run.options.get("scale", 1)}

        def score(batch: Sequence[Text], fast: PyTree | None) -> list[dict[str, Any]]:
            if counter.kill_after is not None and counter.scored >= counter.kill_after:
                raise Killed
            counter.scored += len(batch)
            rows = token_log_probs(run.subject, [item.tokens for item in batch], fast, batch_size=2)
            losses = [-float(row.mean()) * settings["scale"] for row in rows]
            return [{"loss": loss, "low": loss < 7.0} for loss in losses]

        journal = run.journal(name, settings)
        records = run_arms(run, journal, items, lambda item: item.tokens, score)
        metrics, paired = compare(records, name, {"loss": None, "low": 0.5})
        found = outcome(
            run, name, settings=settings, metrics=metrics, paired=paired,
            seconds=time.monotonic() - began, updates=update_statistics(records),
            items=[{"arm": arm, **r} for arm, rows in records.items() for r in rows],
        )  # fmt: skip
        journal.close()
        return found

    def figures(outcome: dict[str, Any]) -> dict[str, Figure]:
        figure = Figure(figsize=(4, 2))
        figure.subplots().plot([1, 2], [1, 2])
        return {"own_plot": figure}

    module.NAME, module.evaluate = name, evaluate  # type: ignore[attr-defined]
    if draws:
        evaluate.figures = figures  # type: ignore[attr-defined]
    return module


def failing_module(error: Exception) -> ModuleType:
    module = ModuleType("made_up_failing")

    def evaluate(run: Run) -> dict[str, Any]:
        raise error

    module.NAME, module.evaluate = "failing", evaluate  # type: ignore[attr-defined]
    return module


OPTIONS = ("scale", "depth", "names", "word", "its_own", "unread")


def register(monkeypatch: Any, modules: dict[str, ModuleType], needs: dict[str, tuple[str, ...]]) -> None:
    """For this test these are all evaluations that there are."""
    entries = {
        name: Entry(f"Made-up {name}", OPTIONS, needs.get(name, ()), module=module.__name__)
        for name, module in modules.items()
    }
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "EVALS", entries)


def bad_data() -> DataError:
    return DataError("data of the made-up evaluation are missing; bring them")
