"""MAD's tasks of keeping a whole sequence: selective copying, and compression into a state."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hope_jax.data.synthetic.task import Example, Task, ask


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """MAD: some symbols among blanks, then the sign to copy, and as many blanks, at which they are asked for
    in order.

    vocab: symbols that are copied. length: tokens of a string. copied: symbols of a string.
    """

    vocab: int = 14
    length: int = 256
    copied: int = 16

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.length < 2 * self.copied + 1:
            yield f"length={self.length}: want at least {2 * self.copied + 1} for copied={self.copied}"

    def symbols(self) -> tuple[str, ...]:
        """Symbols, blank, the sign to copy."""
        return (*(f"s{i}" for i in range(self.vocab)), "_", "copy")

    def most_tokens(self, split: str) -> int:
        """See `Task`."""
        return self.length

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`."""
        before, symbols = self.length - self.copied - 1, rng.integers(0, self.vocab, self.copied)
        tokens = np.full(self.length, self.vocab)
        tokens[np.sort(rng.permutation(before)[: self.copied])] = symbols
        tokens[before] = self.vocab + 1
        return ask(tokens, np.arange(before + 1, self.length), symbols)


@dataclass(frozen=True)
class Compression(Task):
    """After MAD's compression: random symbols, a sign, and as many blanks, at which they are asked for in
    order. MAD decodes the one vector at the sign; here all that the model carries may be used.

    vocab: different symbols. kept: symbols of a string.
    """

    vocab: int = 15
    kept: int = 31

    def symbols(self) -> tuple[str, ...]:
        """Symbols, blank, the sign."""
        return (*(f"s{i}" for i in range(self.vocab)), "_", "end")

    def most_tokens(self, split: str) -> int:
        """See `Task`."""
        return 2 * self.kept + 1

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`."""
        symbols = rng.integers(0, self.vocab, self.kept)
        tokens = np.concatenate([symbols, [self.vocab + 1], np.full(self.kept, self.vocab)])
        return ask(tokens, np.arange(self.kept + 1, 2 * self.kept + 1), symbols)
