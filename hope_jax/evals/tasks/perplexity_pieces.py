"""Texts cut into pieces of tokens, with the bytes and words that each token stands for."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.tasks.sources import read_documents

_SPACES = np.frombuffer(b" \t\n\r\f\v", np.uint8)


class Piece(NamedTuple):
    """tokens: int32 [n], without BOS. bytes, words: int64 [n], UTF-8 bytes that a token stands for, and words
    (runs without white space) that begin in it. key: source and number of the piece in its text."""

    key: str
    source: str
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray

    def part(self, start: int, stop: int) -> "Piece":
        """Some of its tokens."""
        arrays = (t[start:stop] for t in (self.tokens, self.bytes, self.words))
        return Piece(self.key, self.source, *arrays)

    def halves(self) -> tuple["Piece", "Piece"]:
        """The first as long as the second, or a token shorter."""
        middle = len(self.tokens) // 2
        return self.part(0, middle), self.part(middle, len(self.tokens))


def load_pieces(tokenizer: Tokenizer, source: str | None, tokens: int) -> tuple[list[Piece], str]:
    """Pieces of `tokens` tokens, all texts' first ones first, and a digest of the texts.

    source: a text file or folder, whose documents are texts; None: the embedded corpus's held-out documents,
    joined per source. A text's last piece is left out if it has fewer than half of the tokens, unless it is
    its only one and has two.

    Raises:
      ConfigError: there is no such file or folder, or no text that can be scored.
      DataError: it cannot be read.
    """
    texts = _embedded() if source is None else _named(source)
    digest = hashlib.sha256("\0".join(text for _, text in texts).encode()).hexdigest()
    names = [name for name, _ in texts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"perplexity_text={source}: two texts are named {twice!r}; rename one of the files")
    pieces = [piece for name, text in texts for piece in _cut(tokenizer, name, text, tokens)]
    if not pieces:
        raise ConfigError(f"perplexity_text={source}: no text of two tokens in it")
    return sorted(pieces, key=lambda piece: int(piece.key.rsplit("/", 1)[1])), digest


def _embedded() -> list[tuple[str, str]]:
    texts: dict[str, list[str]] = {}
    for document in split_documents(load_documents(EMBEDDED))[1]:
        texts.setdefault(document.source.removesuffix(".txt"), []).append(document.text)
    return [(name, "\n".join(parts)) for name, parts in texts.items()]


def _named(source: str) -> list[tuple[str, str]]:
    documents = read_documents("perplexity_text", source)
    return [(f"{_plain(d.source)}.{d.index}", d.text) for d in documents]


def _plain(name: str) -> str:
    """A file's name as a part of keys, which "/" separates."""
    return name.removesuffix(".txt").replace("/", ".")


def _cut(tokenizer: Tokenizer, name: str, text: str, size: int) -> Sequence[Piece]:
    tokens = tokenizer.encode(text)
    whole = Piece("", name, tokens, *_units(tokenizer, text, tokens))
    pieces = [whole.part(start, start + size) for start in range(0, len(tokens), size)]
    if len(pieces) > 1 and len(pieces[-1].tokens) < size / 2:
        pieces.pop()
    return [p._replace(key=f"{name}/{i}") for i, p in enumerate(pieces) if len(p.tokens) > 1]


def _units(tokenizer: Tokenizer, text: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of each token, and words that begin in it. A space that the tokenizer puts before a text is none
    of the text's, and what it cannot tell counts where it ends."""
    raw = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(tokenizer.byte_counts[tokens])
    ends = np.clip(ends - max(int(ends[-1]) - len(raw), 0), 0, None) if len(ends) else ends
    if len(ends):
        ends[-1] = len(raw)
    space = np.isin(raw, _SPACES)
    begins = np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))
    words = np.bincount(np.searchsorted(ends, begins, side="right"), minlength=len(tokens))
    return np.diff(ends, prepend=0), words
