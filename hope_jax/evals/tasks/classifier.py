"""Classification by likelihood: which label's text follows an utterance best; and what the arms of
class-incremental classification learn from a step's examples.

Beside the raw log-likelihood a label is scored by what the utterance adds to it, log p(label | utterance) -
log p(label | no utterance) (PMI), as else a label that is likely anyway wins everywhere.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading.memorize import unrelated, updates_as_json
from hope_jax.evals.reading.reader import Prefix, Reader
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks.arms import Arm
from hope_jax.evals.tasks.finetune import Tuned, Tuner
from hope_jax.evals.tasks.intents import Task, label_text

_ROWS = 128
"""Pairs of utterance and label that are read together."""


Scores = tuple[np.ndarray, np.ndarray]
"""Raw and PMI, float64 [utterances, labels] in nats each; larger is better."""


class Format:
    """Tokens of the parts of an example, `TEXT\\nIntent: LABEL\\n`; the same ones wherever it stands. most:
    tokens of a text at most; what is longer is cut."""

    def __init__(self, tokenizer: Tokenizer, most: int) -> None:
        self.tokenizer, self.most = tokenizer, most
        self._asks = tokenizer.encode("\nIntent:")

    def context(self, text: str) -> np.ndarray:
        """Before the label: int32 [n]."""
        return np.concatenate([self.tokenizer.encode(text)[: self.most], self._asks])

    def label(self, label: str) -> np.ndarray:
        """int32 [n]; its end is part of it, so that no label is the beginning of another."""
        return self.tokenizer.encode(f" {label_text(label)}\n")

    def example(self, text: str, label: str) -> np.ndarray:
        """int32 [n]."""
        return np.concatenate([self.context(text), self.label(label)])


def score_labels(
    reader: Reader,
    params: PyTree,
    fast: PyTree,
    form: Format,
    texts: Sequence[str],
    labels: Sequence[str],
    prefix: Prefix | None = None,
) -> Scores:
    """Scores of every label for every text, with memories as they stand (`Reader.losses`). Pairs are read
    side by side, an utterance with each of its labels, ordered by length: reading an utterance once for all
    labels would save little, since memories that write while they read tie it to online chunks."""
    contexts = [form.context(text) for text in texts] + [form.context("")]
    ends = [form.label(label) for label in labels]
    rows = [np.concatenate([context, end]) for context in contexts for end in ends]
    tails = [len(end) for _ in contexts for end in ends]
    losses = reader.losses(params, fast, rows, tails, prefix=prefix, batch_size=_ROWS)
    raw = -np.array([loss.sum() for loss in losses]).reshape(len(contexts), len(ends))
    return raw[:-1], raw[:-1] - raw[-1]


def in_context_examples(
    task: Task, form: Format, step: int, longest: int, rng: np.random.Generator
) -> np.ndarray:
    """Examples of the classes seen, one of each class in turn until the training length is full; int32 [n].
    Room is left for the longest test text and label."""
    known = task.known(step)
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

        def nothing(state: Any, _: int) -> tuple[Any, dict[str, Any]]:
            return state, {"updates": {}}

        def reset(_: PyTree, step: int) -> tuple[PyTree, dict[str, Any]]:
            return carried(self.initial, step)

        def carried(fast: PyTree, step: int) -> tuple[PyTree, dict[str, Any]]:
            return self._read(fast, self.examples[step])

        def control(fast: PyTree, step: int) -> tuple[PyTree, dict[str, Any]]:
            """Texts that say nothing of the classes, as long as the examples of a step."""
            seed = int(np.random.default_rng([self.run.seed, step, 3]).integers(2**32))
            rows = self.examples[step]
            texts = [unrelated(self.run.subject, len(row), seed + i) for i, row in enumerate(rows)]
            return self._read(fast, texts)

        @cache
        def every() -> Scores:
            return self._scores(self.params, self.initial, len(self.task.steps) - 1)

        def first(_: Any, step: int) -> dict[str, Any]:
            """Of the scores after the last step those of the test texts until this one."""
            count = sum(len(pairs) for pairs in self.task.test[: step + 1])
            raw, pmi = every()
            return self._record((raw[:count], pmi[:count]), step)

        def read(fast: PyTree, step: int) -> dict[str, Any]:
            return self._record(self._scores(self.params, fast, step), step)

        def in_context(_: Any, step: int) -> dict[str, Any]:
            rng = np.random.default_rng([self.run.seed, step, 2])
            tokens = in_context_examples(self.task, self.form, step, self.longest, rng)
            prefix = self.reader.prefix(self.params, self.initial, tokens, self.longest)
            return self._record(self._scores(self.params, self.initial, step, prefix), step)

        return {
            "carried": Arm(self.initial, carried, read),
            "reset": Arm(self.initial, reset, read),
            "control": Arm(self.initial, control, read),
            "no_memory": Arm(None, nothing, first),
            "in_context": Arm(None, nothing, in_context),
        }

    def tuned(self, rate: float) -> Arm:
        """The arm `adamw` at a learning rate."""

        def learn(state: Tuned, step: int) -> tuple[Tuned, dict[str, Any]]:
            return self.tuner.read_on(state, self.examples[step])[1], {"updates": {}}

        def score(state: Tuned, step: int) -> dict[str, Any]:
            return self._record(self._scores(state.params, self.reader.start(state.params), step), step)

        return Arm(self.tuner.begin(self.params, rate), learn, score)

    def right_labels_after_all(self, rate: float) -> float:
        """Mean log-likelihood of the right labels of validation texts, nats a label, when `adamw` has learned
        all at a rate."""
        arm = self.tuned(rate)
        state = arm.state
        for step in range(len(self.task.steps)):
            state, _ = arm.learn(state, step)
        pairs = [pair for pairs in self.task.validation for pair in pairs] or self.task.train[-1]
        rows = [self.form.example(text, label) for text, label in pairs]
        tails = [len(self.form.label(label)) for _, label in pairs]
        fast = self.reader.start(state.params)
        losses = self.reader.losses(state.params, fast, rows, tails, batch_size=min(_ROWS, 32))
        return -float(np.mean([loss.sum() for loss in losses]))

    def _read(self, fast: PyTree, rows: Sequence[np.ndarray]) -> tuple[PyTree, dict[str, Any]]:
        read = self.reader.read_on(self.params, fast, rows)
        return read.fast, {"updates": updates_as_json(read.updates)}

    def _scores(self, params: PyTree, fast: PyTree, step: int, prefix: Prefix | None = None) -> Scores:
        """Of all labels so far for all test texts so far."""
        texts = [text for pairs in self.task.test[: step + 1] for text, _ in pairs]
        return score_labels(self.reader, params, fast, self.form, texts, self.task.known(step), prefix)

    def _record(self, scores: Scores, step: int) -> dict[str, Any]:
        """Hits by the step whose classes the test texts are of, raw and PMI, and the classes chosen."""
        known, tests = self.task.known(step), self.task.test[: step + 1]
        right = np.array([known.index(label) for pairs in tests for _, label in pairs])
        cuts = np.cumsum([len(pairs) for pairs in tests[:-1]], dtype=int)
        raw, pmi = (of_labels[:, : len(known)].argmax(1) for of_labels in scores)
        return {
            "classes": len(known),
            "raw": [part.tolist() for part in np.split(raw == right, cuts)],
            "pmi": [part.tolist() for part in np.split(pmi == right, cuts)],
            "chosen": [known[i] for i in pmi],
        }
