"""What the arms of class-incremental classification learn from a step's examples, and how they classify."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals.arms.finetune import Tuned, Tuner
from hope_jax.evals.reading.memorize import unrelated
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.reading.updates import Updates
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks.class_tasks import Task, in_context_examples
from hope_jax.evals.tasks.labels import Format, Scores, right_labels, score_labels


class Arm(NamedTuple):
    """state: before the first step. learn: (state, step) -> state after the step's examples, and counts of
    writes. score: (state, step) -> scores of the test texts of the steps so far."""

    state: Any
    learn: Callable[[Any, int], tuple[Any, Updates]]
    score: Callable[[Any, int], Scores]


class Classifier:
    """What the arms of one task have in common: its examples as rows, and the scores of its test texts."""

    def __init__(self, run: Run, reader: Reader, task: Task) -> None:
        self.run, self.reader, self.task = run, reader, task
        self.params = run.subject.trained.params
        self.initial = reader.start(self.params)
        self.longest = run.subject.config.data.seq_len
        labels = [len(Format(reader.tokenizer, 0).example("", label)) for label in task.classes]
        self.form = Format(reader.tokenizer, max(1, self.longest - 1 - max(labels)))
        self.examples = [[self.form.example(*pair) for pair in pairs] for pairs in task.train]
        self.tuner = Tuner(reader, self.longest)

    def arms(self) -> dict[str, Arm]:
        """All arms but `adamw`, by name."""

        def nothing(state: Any, _: int) -> tuple[Any, Updates]:
            return state, {}

        @cache
        def every() -> Scores:
            return self.score(self.params, self.initial, len(self.task.steps) - 1)

        read = self.score_with_memory
        return {
            "carried": Arm(self.initial, self.carried, read),
            "reset": Arm(self.initial, lambda _, step: self.carried(self.initial, step), read),
            "control": Arm(self.initial, self.unrelated, read),
            "no_memory": Arm(None, nothing, lambda _, step: _until(self.task, every(), step)),
            "in_context": Arm(None, nothing, self.in_context),
        }

    def tuned(self, rate: float) -> Arm:
        """The arm `adamw` at a learning rate."""

        def learn(state: Tuned, step: int) -> tuple[Tuned, Updates]:
            return self.tuner.read_on(state, self.examples[step])[1], {}

        def score(state: Tuned, step: int) -> Scores:
            return self.score(state.params, self.reader.start(state.params), step)

        return Arm(self.tuner.begin(self.params, rate), learn, score)

    def carried(self, fast: PyTree, step: int) -> tuple[PyTree, Updates]:
        """The memories after the examples of a step."""
        read = self.reader.read_on(self.params, fast, self.examples[step])
        return read.fast, read.updates

    def unrelated(self, fast: PyTree, step: int) -> tuple[PyTree, Updates]:
        """The memories after texts that say nothing of the classes, as long as the examples of a step."""
        seed = int(np.random.default_rng([self.run.seed, step, 3]).integers(2**32))
        texts = [unrelated(self.run.subject, len(row), seed + i) for i, row in enumerate(self.examples[step])]
        read = self.reader.read_on(self.params, fast, texts)
        return read.fast, read.updates

    def score(self, params: PyTree, fast: PyTree, step: int, prefix: Any = None) -> Scores:
        """Of all labels so far for all test texts so far."""
        texts = [text for pairs in self.task.test[: step + 1] for text, _ in pairs]
        known = [label for labels in self.task.steps[: step + 1] for label in labels]
        return score_labels(self.reader, params, fast, self.form, texts, known, prefix)

    def score_with_memory(self, fast: PyTree, step: int) -> Scores:
        """By the checkpoint's parameters."""
        return self.score(self.params, fast, step)

    def in_context(self, _: Any, step: int) -> Scores:
        """With examples before the utterance."""
        rng = np.random.default_rng([self.run.seed, step, 2])
        tokens = in_context_examples(self.task, self.form, step, self.longest, rng)
        prefix = self.reader.prefix(self.params, self.initial, tokens, self.longest)
        return self.score(self.params, self.initial, step, prefix)

    def right_labels_after_all(self, arm: Arm) -> float:
        """Mean log-likelihood of the right labels of validation texts when an `adamw` arm has learned all."""
        state = arm.state
        for step in range(len(self.task.steps)):
            state, _ = arm.learn(state, step)
        pairs = [pair for pairs in self.task.validation for pair in pairs] or self.task.train[-1]
        return right_labels(self.reader, state.params, self.reader.start(state.params), self.form, pairs)


def _until(task: Task, scores: Scores, step: int) -> Scores:
    """Of scores after the last step those of the test texts until `step`."""
    count = sum(len(pairs) for pairs in task.test[: step + 1])
    return Scores(scores.raw[:count], scores.pmi[:count])
