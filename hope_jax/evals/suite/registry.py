"""The evaluations by name. Each module is imported when it runs: some need packages that others do not."""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from matplotlib.figure import Figure

from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.data.synthetic import is_synthetic
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.run import Run


class Entry(NamedTuple):
    """module: dotted name. title: for reports. needs: options without which it runs only if it is asked for
    by name. whole_run: it covers all checkpoints of a run up to its subject, so of several of one run only
    the newest is its subject. symbols: of models of synthetic tasks; the others are of models of text.
    headlines: see `report_figures.headlines`. options: the names of all that it reads."""

    module: str
    title: str
    needs: tuple[str, ...] = ()
    whole_run: bool = False
    symbols: bool = False
    headlines: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Evaluation(Protocol):
    """What a module of an evaluation has; also, if it draws, `figures(outcome) -> {name: Figure}`, and, if it
    has options, `check(run)`, which raises ConfigError for those that cannot be."""

    NAME: str
    evaluate: Callable[[Run], dict[str, Any]]


_SEGMENTS = ("segments", "segment_bytes", "segment_names")

EVALS: dict[str, Entry] = {
    "passkey": Entry(
        "hope_jax.evals.tasks.passkey",
        "Passkey",
        options=("passkey_prompts", "passkey_lengths", "passkey_answer_tokens", "passkey_depth"),
    ),
    "niah": Entry(
        "hope_jax.evals.tasks.niah",
        "Needles in a haystack",
        options=("niah_tasks", "niah_lengths", "niah_samples", "niah_answer_tokens", "niah_haystack"),
    ),
    "perplexity": Entry(
        "hope_jax.evals.tasks.perplexity",
        "Perplexity of long texts",
        headlines=("all/nats_per_token", "second_half/nats_per_token"),
        options=("perplexity_text", "perplexity_tokens"),
    ),
    "zeroshot": Entry(
        "hope_jax.evals.tasks.zeroshot",
        "Zero-shot tasks",
        needs=("zeroshot_data",),
        options=("zeroshot_data", "zeroshot_tasks", "zeroshot_max_length", "zeroshot_note"),
    ),
    "continual": Entry(
        "hope_jax.evals.tasks.continual",
        "Forgetting over checkpoints",
        whole_run=True,
        headlines=("all/nats_per_token", "all/forgetting"),
        options=(*_SEGMENTS, "block_tokens", "checkpoints", "learned_at"),
    ),
    "adaptation": Entry(
        "hope_jax.evals.tasks.adaptation",
        "Online adaptation",
        headlines=("held_out/nats_per_token",),
        options=(*_SEGMENTS, "block_tokens", "learning_rates"),
    ),
    "class_incremental": Entry(
        "hope_jax.evals.tasks.class_incremental",
        "Class-incremental learning",
        needs=("intents",),
        headlines=("accuracy_raw",),
        options=("intents", "datasets", "examples", "tests", "class_steps", "learning_rates"),
    ),
    "synthetic": Entry(
        "hope_jax.evals.tasks.synthetic",
        "Synthetic mechanism tasks",
        symbols=True,
        options=("synthetic_strings", "synthetic_targets"),
    ),
}


def selected(only: Sequence[str], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names to run, in the registry's order: those of `only`, or all.

    Raises:
      ConfigError: an unknown name.
    """
    for name in only:
        if name not in EVALS:
            raise ConfigError(
                f"--only: there is no evaluation {name!r}; {instead(name, EVALS, 'want some of')}"
            )
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


def load(name: str) -> Evaluation:
    """Imports the module of an evaluation."""
    return cast(Evaluation, importlib.import_module(EVALS[name].module))


def check(name: str, run: Run) -> None:
    """Raises: ConfigError for options of an evaluation that cannot be. What else is wrong with its data is
    found when it runs, and stops no other."""
    with contextlib.suppress(DataError):
        getattr(load(name), "check", lambda run: None)(run)


def figures_of(name: str, outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """The evaluation's own plots of a result; {} if it has none."""
    draw = getattr(load(name), "figures", None)
    return dict(draw(outcome)) if draw else {}
