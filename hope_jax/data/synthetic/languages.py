"""The formal languages of the paper's Table 5, as prediction of what may follow (docs/evals/synthetic.md).

After each symbol the answer is one label: of parity the parity so far, of the others the set of symbols that
may come next ("." is the end of the string). A string is right only if all its labels are. Training and
`bin0` have sizes 1 to `longest`, `bin1` from there to twice as many; a size is a length, of a^n b^n and
a^n b^n c^n it is n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from hope_jax.data.synthetic.task import Example, Task, ask

Labelled: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Letters and labels [n], by their numbers."""


@dataclass(frozen=True)
class Language(Task):
    """What all have in common. Of the signs, labels begin with = and follow the letters. longest: largest
    size in training. unit: sizes are multiples of it. repeats: tokens of a string of size 1. single: there is
    at most one string of a size, and an eval reads all of them."""

    longest: int = 50

    splits: ClassVar[tuple[str, ...]] = ("bin0", "bin1")
    unit: ClassVar[int] = 1
    repeats: ClassVar[int] = 1
    single: ClassVar[bool] = False

    def sizes(self, split: str) -> range:
        """The sizes of a split, rising; of `bin1` there may be none."""
        first, last = (self.longest + 1, 2 * self.longest) if split == "bin1" else (1, self.longest)
        return range(-(-first // self.unit) * self.unit, last + 1, self.unit)

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if not self.sizes("bin0") or not self.sizes("bin1"):
            yield f"longest={self.longest}: no string is so short; use {self.unit} or more"

    def most_tokens(self) -> int:
        """See `Task`."""
        return self.repeats * self.sizes("train")[-1]

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`; all sizes are equally likely."""
        return self._labelled(int(rng.choice(self.sizes(split))), rng)

    def every(self, split: str) -> list[Example] | None:
        """See `Task`."""
        rng = np.random.default_rng(0)  # nothing is drawn
        return [self._labelled(size, rng) for size in self.sizes(split)] if self.single else None

    def _labelled(self, size: int, rng: np.random.Generator) -> Example:
        letters, labels = self._string(size, rng)
        first = sum(not sign.startswith("=") for sign in self.signs)
        return ask(letters, np.arange(len(letters)), labels + first)

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        """A string of that size."""
        raise NotImplementedError


class Parity(Language):
    """Random bits; the label is the parity of the ones so far."""

    signs = ("0", "1", "=even", "=odd")

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        bits = rng.integers(0, 2, size)
        return bits, np.cumsum(bits) % 2


class AA(Language):
    """(aa)*: after an odd number of letters one must follow."""

    signs, unit, single = ("a", "=a.", "=a"), 2, True

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        return np.zeros(size, int), np.arange(1, size + 1) % 2


class ABAB(Language):
    """(abab)*: the string may end after every second ab only."""

    signs, unit, single = ("a", "b", "=a.", "=b", "=a"), 4, True

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        return np.arange(size) % 2, np.array([0, 1, 2, 1])[np.arange(1, size + 1) % 4]


class AnBn(Language):
    """a^n b^n: the first b tells how many are to come."""

    signs: ClassVar[tuple[str, ...]] = ("a", "b", "=ab", "=b", "=.")
    repeats, single = 2, True

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        read = np.arange(1, self.repeats * size + 1)
        return (read - 1) // size, np.where(read > size, read // size, 0)


class AnBnCn(AnBn):
    """a^n b^n c^n: with the last b it is known that c follows, and how often."""

    repeats = 3
    signs: ClassVar[tuple[str, ...]] = ("a", "b", "c", "=ab", "=b", "=c", "=.")


class Shuffle2(Language):
    """Two kinds of brackets, each balanced for itself, shuffled; the label is which may be closed."""

    signs, unit = ("(", ")", "[", "]", "=([.", "=)([", "=([]", "=)([]"), 2

    def _string(self, size: int, rng: np.random.Generator) -> Labelled:
        # Each symbol is drawn from those with which the string can still be finished.
        depth, letters, labels = [0, 0], [], []
        for left in range(size, 0, -1):
            opening = [0, 2] if sum(depth) < left else []
            closing = [2 * kind + 1 for kind in (0, 1) if depth[kind]]
            letter = int(rng.choice(opening + closing))
            depth[letter // 2] += -1 if letter % 2 else 1
            letters.append(letter)
            labels.append((depth[0] > 0) + 2 * (depth[1] > 0))
        return np.array(letters), np.array(labels)
