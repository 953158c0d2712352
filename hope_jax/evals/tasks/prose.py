"""Running text of any length for haystacks: that of the embedded corpus, or any other."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hope_jax.data.corpus import EMBEDDED, load_documents
from hope_jax.evals.tasks.sources import read_documents

PROSE = ("austen.txt", "sotu.txt")
"""Files of the embedded corpus that are prose."""

_TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Dr", "St", "Col", "Esq"))
_SENTENCE_END = re.compile(rf"{_TITLES}(?:(?<=[.!?])|(?<=[.!?][\"'_)])) ")


class Prose:
    """Running text whose words are the units of haystacks; it goes on from its end to its beginning."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Args: documents, which are joined in order; their white space becomes single spaces."""
        self._words = " ".join(texts).split()

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the words."""
        return hashlib.sha256(" ".join(self._words).encode()).hexdigest()

    @cached_property
    def _starts(self) -> np.ndarray:
        """Indices of words with which sentences begin."""
        lengths = [len(s.split()) for s in split_sentences(" ".join(self._words))]
        return np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def words(self, start: float, count: int) -> str:
        """`count` words from the beginning of a sentence; start in [0, 1): which one."""
        at = int(self._starts[int(start * len(self._starts))])
        rounds = (at + count) // len(self._words) + 1
        return " ".join((self._words * rounds)[at : at + count])


def load_prose(source: str | None) -> Prose:
    """The prose of the embedded corpus (None), or of a text file or folder.

    Raises:
      ConfigError: there is no such file or folder, or no text in it.
      DataError: it cannot be read.
    """
    if source is not None:
        return Prose([d.text for d in read_documents("niah_haystack", source)])
    return Prose([d.text for d in load_documents(EMBEDDED) if d.source in PROSE])


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without line breaks; joined by spaces they are the text."""
    return _SENTENCE_END.split(text)
