"""The evaluations by name. Each module is imported when it runs: some need packages that others do not."""

import contextlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.data.synthetic import is_synthetic
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.run import Run


class Entry(NamedTuple):
    """An evaluation: a module with `NAME` and `evaluate(run)` (see `run.evaluation`). title: for reports.
    options: the names of all that it reads. needs: options without which it runs only if it is asked for by
    name. whole_run: it covers all checkpoints of a run up to its subject, so of several of one run only the
    newest is its subject. symbols: of models of synthetic tasks; the others are of models of text. headlines:
    see `plots.headlines`. module: dotted name; "": that of `tasks` with its name."""

    title: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    whole_run: bool = False
    symbols: bool = False
    headlines: tuple[str, ...] = ()
    module: str = ""


class Result(NamedTuple):
    """What became of an evaluation. outcome: its JSON value, None if there is none. problem: why there is
    none. failed: it was tried."""

    name: str
    outcome: dict[str, Any] | None = None
    problem: str = ""
    failed: bool = False


_SEGMENTS = ("segments", "segment_bytes", "segment_names", "block_tokens")

EVALS: dict[str, Entry] = {
    "passkey": Entry(
        "Passkey", ("passkey_prompts", "passkey_lengths", "passkey_answer_tokens", "passkey_depth")
    ),
    "niah": Entry(
        "Needles in a haystack",
        ("niah_tasks", "niah_lengths", "niah_samples", "niah_answer_tokens", "niah_haystack"),
    ),
    "perplexity": Entry(
        "Perplexity of long texts",
        ("perplexity_text", "perplexity_tokens"),
        headlines=("all/nats_per_token", "second_half/nats_per_token"),
    ),
    "zeroshot": Entry(
        "Zero-shot tasks",
        ("zeroshot_data", "zeroshot_tasks", "zeroshot_max_length", "zeroshot_note"),
        needs=("zeroshot_data",),
    ),
    "continual": Entry(
        "Forgetting over checkpoints",
        (*_SEGMENTS, "checkpoints", "learned_at"),
        whole_run=True,
        headlines=("all/nats_per_token", "all/forgetting"),
    ),
    "adaptation": Entry(
        "Online adaptation", (*_SEGMENTS, "learning_rates"), headlines=("held_out/nats_per_token",)
    ),
    "class_incremental": Entry(
        "Class-incremental learning",
        ("intents", "datasets", "examples", "tests", "class_steps", "learning_rates"),
        needs=("intents",),
        headlines=("accuracy_raw",),
    ),
    "synthetic": Entry("Synthetic mechanism tasks", ("synthetic_strings", "synthetic_targets"), symbols=True),
}


def selected(only: Sequence[str], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names to run, in the registry's order: those of `only`, or all that have what they need. Raises:
    ConfigError for an unknown name."""
    for name in only:
        if name not in EVALS:
            want = instead(name, EVALS, "want some of")
            raise ConfigError(f"--only: there is no evaluation {name!r}; {want}")
    return tuple(name for name in EVALS if name in only or (not only and not lacking(name, options)))


def check_options(keys: Iterable[str]) -> None:
    """Raises: ConfigError for the name of an option that no evaluation has."""
    known = sorted({option for entry in EVALS.values() for option in entry.options})
    for key in keys:
        if key not in known:
            raise ConfigError(f"--option={key}: no evaluation has it; {instead(key, known)}")


def lacking(name: str, options: Mapping[str, Any]) -> str:
    """The flags that an evaluation needs and `options` do not have, as text; empty: it has all."""
    return ", ".join(f"--{key}" for key in EVALS[name].needs if not options.get(key))


def unfit(name: str, subject: Subject) -> str:
    """Why an evaluation has nothing to do with a subject; empty: it has."""
    source = subject.config.data.source
    if EVALS[name].symbols == is_synthetic(source):
        return ""
    kind = "synthetic tasks" if EVALS[name].symbols else "text"
    return f"it is of models of {kind}, and this reads {source!r}"


def load(name: str) -> Any:
    """Imports the module of an evaluation."""
    return importlib.import_module(EVALS[name].module or f"hope_jax.evals.tasks.{name}")


def check(name: str, run: Run) -> None:
    """Raises: ConfigError for options of an evaluation that cannot be. What else is wrong with its data is
    found when it runs, and stops no other."""
    with contextlib.suppress(DataError):
        getattr(load(name).evaluate, "check", lambda run: None)(run)


def figures_of(name: str, outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """The evaluation's own plots of a result; {} if it has none."""
    draw = getattr(getattr(load(name), "evaluate", None), "figures", None)
    return dict(draw(outcome)) if draw else {}
