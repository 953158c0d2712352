"""Needle in a haystack: RULER's eight tasks over lengths, in other haystacks (docs/evals/long_context.md).

Options: niah_tasks (names, see `niah_prompts.TASKS`), niah_lengths (tokens of BOS, prompt and answer),
niah_samples (of a task and length), niah_haystack (a text file or folder instead of the embedded prose),
niah_answer_tokens (drawn at most).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from hope_jax.evals.suite import options
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks import retrieval
from hope_jax.evals.tasks.long_context_figures import accuracy_over_length
from hope_jax.evals.tasks.niah_prompts import (
    ANSWER_TOKENS,
    LABEL,
    TASKS,
    check_length,
    make_prompt,
)
from hope_jax.evals.tasks.prompts import Prompt
from hope_jax.evals.tasks.prose import Prose, load_prose
from hope_jax.evals.tasks.retrieval import Group

NAME = "niah"
LENGTHS = (2048, 4096, 8192, 16384)
SAMPLES = 50


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome: metrics "task@length/field/arm" with the fields of `retrieval.FIELDS`.

    Raises:
      ConfigError: unknown options, or a length too short for a task, with the least that is enough.
      DataError: the haystack cannot be read.
    """
    settings, prose = _asked(run)
    answer_tokens, samples = settings["answer_tokens"], settings["samples"]
    groups = [
        Group(task, length, partial(_make, run, task, length, prose, answer_tokens))
        for length in settings["lengths"]
        for task in settings["tasks"]
    ]
    return retrieval.evaluate(
        run, NAME, settings, groups, min(samples, run.limit or samples), answer_tokens, _notes(run)
    )


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, DataError for a haystack."""
    _asked(run)


def _asked(run: Run) -> tuple[dict[str, Any], Prose]:
    """The settings, and what needles are hidden in."""
    tasks = options.chosen(run.options, "niah_tasks", TASKS)
    lengths = options.whole_numbers(run.options, "niah_lengths", LENGTHS)
    samples = options.whole_number(run.options, "niah_samples", SAMPLES)
    answer_tokens = options.whole_number(run.options, "niah_answer_tokens", ANSWER_TOKENS)
    count = min(samples, run.limit or samples)
    prose = load_prose(run.options.get("niah_haystack"))
    tokenizer = run.subject.trained.tokenizer
    for task in tasks:
        for length in lengths:
            check_length(tokenizer, task, length, count, seed=run.seed, answer_tokens=answer_tokens)
    return {
        "tasks": list(tasks),
        "lengths": list(lengths),
        "samples": samples,
        "answer_tokens": answer_tokens,
        "haystack": prose.digest,
        "label": LABEL,
    }, prose


def _notes(run: Run) -> list[str]:
    if run.options.get("niah_haystack"):
        return [f"{LABEL}: prose of niah_haystack, and keys' words of ours."]
    return [
        f"{LABEL}: prose of the embedded corpus, and keys' words of ours.",
        "For a model that was trained on the embedded corpus this prose is training text; "
        f"this one's data.source is {run.subject.config.data.source!r}.",
    ]


def _make(run: Run, task: str, length: int, prose: Prose, answer_tokens: int, index: int) -> Prompt:
    tokenizer = run.subject.trained.tokenizer
    return make_prompt(
        tokenizer, task, length, index, seed=run.seed, prose=prose, answer_tokens=answer_tokens
    )


def figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Choice and string match over length, a panel a task, of an outcome."""
    return accuracy_over_length(NAME, found["metrics"])
