"""Classification by likelihood: which label's text follows an utterance best.

Beside the raw log-likelihood a label is scored by what the utterance adds to it, log p(label | utterance) -
log p(label | no utterance) (PMI), as else a label that is likely anyway wins everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading.reader import Prefix, Reader
from hope_jax.evals.tasks.intents import label_text

_ROWS = 128
"""Pairs of utterance and label that are read together."""


class Scores(NamedTuple):
    """raw, pmi: float64 [utterances, labels] in nats, larger is better."""

    raw: np.ndarray
    pmi: np.ndarray

    def best(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """The best of the first `labels` labels for each utterance, int [utterances], by raw and by PMI."""
        return self.raw[:, :labels].argmax(1), self.pmi[:, :labels].argmax(1)


class Format:
    """Tokens of the parts of an example, `TEXT\\nIntent: LABEL\\n`; the same ones wherever it stands.

    most: tokens of a text at most; what is longer is cut.
    """

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
    """Scores of every label for every text, with memories as they stand (`Reader.losses`).

    Pairs are read side by side, an utterance with each of its labels, ordered by length: reading an utterance
    once for all labels would save little, since memories that write while they read tie it to online chunks.
    """
    contexts = [form.context(text) for text in texts] + [form.context("")]
    ends = [form.label(label) for label in labels]
    rows = [np.concatenate([context, end]) for context in contexts for end in ends]
    tails = [len(end) for _ in contexts for end in ends]
    losses = reader.losses(params, fast, rows, tails, prefix=prefix, batch_size=_ROWS)
    raw = -np.array([loss.sum() for loss in losses]).reshape(len(contexts), len(ends))
    return Scores(raw[:-1], raw[:-1] - raw[-1])


def right_labels(
    reader: Reader, params: PyTree, fast: PyTree, form: Format, pairs: Sequence[tuple[str, str]]
) -> float:
    """Mean log-likelihood of the right labels of (text, label) pairs, nats a label."""
    rows = [form.example(text, label) for text, label in pairs]
    tails = [len(form.label(label)) for _, label in pairs]
    losses = reader.losses(params, fast, rows, tails, batch_size=min(_ROWS, 32))
    return -float(np.mean([loss.sum() for loss in losses]))
