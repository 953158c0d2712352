"""Needle in a haystack: RULER's eight tasks over lengths, in haystacks of our own (docs/evals/long_context.md).

Options: niah_tasks (names, see `niah_prompts.TASKS`), niah_lengths (tokens of BOS, prompt and answer),
niah_samples (of a task and length), niah_haystack (a text file or folder instead of the embedded prose),
niah_answer_tokens (drawn at most).
"""

import time
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from hope_jax.evals import options, retrieval
from hope_jax.evals.arms import update_statistics
from hope_jax.evals.long_context_figures import accuracy_over_length
from hope_jax.evals.niah_prompts import ANSWER_TOKENS, LABEL, TASKS, check_length, load_prose, make_prompt
from hope_jax.evals.run import Run, outcome, progress

NAME = "niah"
LENGTHS = (2048, 4096, 8192, 16384)
SAMPLES = 50


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome: metrics "task@length/field/arm" with the fields of `retrieval.FIELDS`.

    Raises:
      ConfigError: unknown options, or a length too short for a task, with the least that is enough.
      DataError: the haystack cannot be read.
    """
    started = time.monotonic()
    tasks = options.chosen(run, "niah_tasks", TASKS)
    lengths = options.whole_numbers(run, "niah_lengths", LENGTHS)
    samples = options.whole_number(run, "niah_samples", SAMPLES)
    answer_tokens = options.whole_number(run, "niah_answer_tokens", ANSWER_TOKENS)
    count = min(samples, run.limit or samples)
    prose = load_prose(run.options.get("niah_haystack"))
    tokenizer = run.subject.trained.tokenizer
    for task in tasks:
        for length in lengths:
            check_length(tokenizer, task, length, count, seed=run.seed, answer_tokens=answer_tokens)
    settings = {
        "tasks": list(tasks),
        "lengths": list(lengths),
        "samples": samples,
        "answer_tokens": answer_tokens,
        "haystack": prose.digest,
        "label": LABEL,
    }
    journal = run.journal(NAME, settings)
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    updates: dict[str, Any] = {}
    for length in lengths:
        for task in tasks:
            make = partial(_make, run, task, length, prose=prose, answer_tokens=answer_tokens)
            records = retrieval.ask(run, journal, task, length, count, make, answer_tokens)
            found = retrieval.summarize(records, task, length)
            metrics |= found[0]
            paired |= found[1]
            updates[f"{task}@{length}"] = update_statistics(records)
            items += [{"arm": arm, **item} for arm, of_arm in records.items() for item in of_arm]
            shown = {arm: metrics[f"{task}@{length}/choice/{arm}"]["value"] for arm in run.arms}
            progress(NAME).info("%s@%d: choice %s", task, length, shown)
    journal.finish()
    seconds = time.monotonic() - started
    return outcome(
        run, NAME, settings=settings, metrics=metrics, paired=paired, items=items, seconds=seconds,
        updates=updates,
    )  # fmt: skip
