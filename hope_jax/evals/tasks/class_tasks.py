"""What a class-incremental evaluation reads and asks: examples and test texts, drawn from a data set."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.paths import as_path
from hope_jax.evals.suite.options import listed, whole_number
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks import intents
from hope_jax.evals.tasks.intents import Dataset
from hope_jax.evals.tasks.labels import Format

Pairs = list[tuple[str, str]]
"""(text, class)."""


class Task(NamedTuple):
    """steps: classes by step. train, validation, test: (text, class) of each step, drawn with the seed; of
    training texts in a mixed order."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    train: list[Pairs]
    validation: list[Pairs]
    test: list[Pairs]

    @property
    def classes(self) -> list[str]:
        """All, in the order in which they arrive."""
        return [label for step in self.steps for label in step]


def tasks_of(run: Run) -> tuple[list[Task], dict[str, Any]]:
    """What the options ask for, and the settings that say so."""
    folder = run.options.get("intents")
    if folder is None:
        raise ConfigError(
            "intents is missing; want the folder of the classification data (docs/evals/continual.md)"
        )
    examples = whole_number(run.options, "examples", 20)
    count = whole_number(run.options, "tests", 150)
    if run.limit:
        examples, count = min(examples, run.limit), min(count, run.limit)
    most = whole_number(run.options, "class_steps", 1000)
    names = listed(run.options, "datasets") or intents.available(as_path("intents", str(folder)))
    if not names:
        raise ConfigError(
            f"intents={folder}: no known data set is there; docs/evals/continual.md names the files"
        )
    loaded = [intents.load(name, Path(str(folder)), run.seed, most) for name in names]
    tasks = [draw(data, run.seed, examples, count) for data in loaded]
    own = {
        "datasets": list(names),
        "examples": examples,
        "tests": count,
        "classes": {task.name: [len(step) for step in task.steps] for task in tasks},
    }
    return tasks, own


def draw(data: Dataset, seed: int, examples: int, tests: int) -> Task:
    """Texts of each class by the seed, so that another number of them draws the same first ones."""
    parts: tuple[list[Pairs], list[Pairs], list[Pairs]] = [], [], []
    for number, step in enumerate(data.steps):
        rng = np.random.default_rng([seed, number])
        train: Pairs = []
        validation: Pairs = []
        test: list[Pairs] = []
        for label in step:
            texts = [data.train[label][i] for i in rng.permutation(len(data.train[label]))]
            train += [(text, label) for text in texts[:examples]]
            validation += [(text, label) for text in texts[examples : examples + 2]]
            test.append([(data.test[label][i], label) for i in rng.permutation(len(data.test[label]))])
        mixed = np.random.default_rng([seed, number, 1]).permutation(len(train))
        rounds = [pairs[i] for i in range(max(map(len, test))) for pairs in test if i < len(pairs)]
        for part, own in zip(parts, ([train[i] for i in mixed], validation, rounds[:tests]), strict=True):
            part.append(own)
    return Task(data.name, data.steps, *parts)


def in_context_examples(
    task: Task, form: Format, step: int, longest: int, rng: np.random.Generator
) -> np.ndarray:
    """Examples of the classes seen, one of each class in turn until the training length is full; int32 [n].
    Room is left for the longest test text and label."""
    known = [label for labels in task.steps[: step + 1] for label in labels]
    by_class = {label: [p for pairs in task.train for p in pairs if p[1] == label] for label in known}
    turns = [
        by_class[known[i]][turn % len(by_class[known[i]])]
        for turn in range(max(map(len, by_class.values())))
        for i in rng.permutation(len(known))
    ]
    tests = [form.context(text) for pairs in task.test[: step + 1] for text, _ in pairs]
    room = longest - 1 - max(map(len, tests)) - max(len(form.label(label)) for label in known)
    parts: list[np.ndarray] = [np.zeros(0, np.int32)]
    for pair in turns:
        example = form.example(*pair)
        if len(example) > room:
            break
        parts.append(example)
        room -= len(example)
    return np.concatenate(parts)
