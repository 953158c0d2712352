"""Synthetic mechanism tasks with exact answers: `data.source="synthetic:<task>"` (docs/evals/synthetic.md).

Only numpy is imported here, so that the front can check a configuration at once.
"""

import dataclasses
from collections.abc import Mapping

from hope_jax.core.errors import ConfigError, instead
from hope_jax.data.synthetic import languages, recall
from hope_jax.data.synthetic.task import Example, Task

__all__ = ["PREFIX", "TASKS", "Example", "Task", "find_task", "is_synthetic"]

PREFIX = "synthetic:"

TASKS: Mapping[str, type[Task]] = {
    "parity": languages.Parity,
    "aa": languages.AA,
    "abab": languages.ABAB,
    "anbn": languages.AnBn,
    "anbncn": languages.AnBnCn,
    "shuffle2": languages.Shuffle2,
    "mqar": recall.Mqar,
    "compression": recall.Compression,
    "in_context_recall": recall.InContextRecall,
    "fuzzy_recall": recall.FuzzyRecall,
    "selective_copying": recall.SelectiveCopying,
    "memorization": recall.Memorization,
}
"""By the name that follows `synthetic:`: Table 5's languages, MQAR, MAD's five."""


def is_synthetic(source: str) -> bool:
    """Whether a `data.source` names a synthetic task."""
    return source.startswith(PREFIX)


def find_task(source: str, options: Mapping[str, int], seq_len: int) -> Task | None:
    """The task that `data.source` and `data.task_options` name; None: another kind of source. seq_len: tokens
    of a row, which holds one string. Raises: ConfigError: no such task or option, options that do not fit
    each other, or too short rows."""
    if not is_synthetic(source):
        if options:
            raise ConfigError(
                f"data.task_options has no effect under data.source={source!r}; leave it empty, or name a "
                f"task, for example data.source={PREFIX}parity"
            )
        return None
    name = source.removeprefix(PREFIX)
    if name not in TASKS:
        raise ConfigError(f"data.source={source!r}: no such task; {instead(name, TASKS)}")
    kind = TASKS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"data.task_options.{key}: {name} has no such option; {instead(key, known, 'it has')}"
            )
        if value < 1:
            raise ConfigError(f"data.task_options.{key}={value}: want at least 1")
    task = kind(**options)
    for problem in task.problems():
        raise ConfigError(f"data.task_options.{problem}")
    if (longest := task.most_tokens()) > seq_len:
        raise ConfigError(
            f"data.seq_len={seq_len}: {source} has strings of {longest} tokens; raise it, or lower "
            f"data.task_options ({', '.join(known)})"
        )
    return task
