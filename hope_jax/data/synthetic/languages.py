"""The formal languages of the paper's Table 5, as prediction of what may follow (docs/evals/synthetic.md).

After each symbol the answer is one label: of parity the parity so far, of the others the set of symbols that
may come next ("." is the end of the string). A string is right only if all its labels are. Training and
`bin0` have sizes 1 to `longest`, `bin1` from there to twice as many; a size is a length, of a^n b^n and
a^n b^n c^n it is n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hope_jax.data.synthetic.task import Example, Task, ask


@dataclass(frozen=True)
class Language(Task):
    """What all have in common. longest: largest size in training."""

    longest: int = 50

    splits: ClassVar[tuple[str, ...]] = ("bin0", "bin1")
    unit: ClassVar[int] = 1
    """Sizes are multiples of it."""

    def letters(self) -> int:
        """How many signs are letters; labels, with =, follow."""
        return sum(not sign.startswith("=") for sign in self.signs)

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
        return self.sizes("train")[-1]

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`; all sizes are equally likely."""
        return self.of_size(int(rng.choice(self.sizes(split))), rng)

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """A string of that size."""
        raise NotImplementedError

    def labelled(self, letters: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Example:
        """A string [n] with a label, by its number, at each position."""
        answers = np.asarray(labels) + self.letters()
        return ask(np.asarray(letters), np.arange(len(answers)), answers)


@dataclass(frozen=True)
class Parity(Language):
    """Random bits; the label is the parity of the ones so far."""

    signs: ClassVar[tuple[str, ...]] = ("0", "1", "=even", "=odd")

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`."""
        bits = rng.integers(0, 2, size)
        return self.labelled(bits, np.cumsum(bits) % 2)


class _OneString(Language):
    """A language with at most one string of each size: an eval reads all of them."""

    def every(self, split: str) -> list[Example]:
        """See `Task`."""
        rng = np.random.default_rng(0)  # nothing is drawn
        return [self.of_size(size, rng) for size in self.sizes(split)]


@dataclass(frozen=True)
class AA(_OneString):
    """(aa)*: after an odd number of letters one must follow."""

    signs: ClassVar[tuple[str, ...]] = ("a", "=a.", "=a")
    unit: ClassVar[int] = 2

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`."""
        return self.labelled(np.zeros(size, int), np.arange(1, size + 1) % 2)


@dataclass(frozen=True)
class ABAB(_OneString):
    """(abab)*: the string may end after every second ab only."""

    signs: ClassVar[tuple[str, ...]] = ("a", "b", "=a.", "=b", "=a")
    unit: ClassVar[int] = 4

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`."""
        return self.labelled(np.arange(size) % 2, np.array([0, 1, 2, 1])[np.arange(1, size + 1) % 4])


@dataclass(frozen=True)
class AnBn(_OneString):
    """a^n b^n: the first b tells how many are to come."""

    signs: ClassVar[tuple[str, ...]] = ("a", "b", "=ab", "=b", "=.")

    def most_tokens(self) -> int:
        """See `Task`."""
        return self.letters() * self.longest

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`."""
        return self.labelled(np.repeat([0, 1], size), [0] * size + [1] * (size - 1) + [2])


@dataclass(frozen=True)
class AnBnCn(AnBn):
    """a^n b^n c^n: with the last b it is known that c follows, and how often."""

    signs: ClassVar[tuple[str, ...]] = ("a", "b", "c", "=ab", "=b", "=c", "=.")

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`."""
        follows = [0] * size + [1] * (size - 1) + [2] * size + [3]
        return self.labelled(np.repeat([0, 1, 2], size), follows)


@dataclass(frozen=True)
class Shuffle2(Language):
    """Two kinds of brackets, each balanced for itself, shuffled; the label is which may be closed."""

    signs: ClassVar[tuple[str, ...]] = ("(", ")", "[", "]", "=([.", "=)([", "=([]", "=)([]")
    unit: ClassVar[int] = 2

    def of_size(self, size: int, rng: np.random.Generator) -> Example:
        """See `Language`. Each symbol is drawn from those with which the string can still be finished."""
        depth, letters, labels = [0, 0], [], []
        for left in range(size, 0, -1):
            opening = [0, 2] if sum(depth) < left else []
            closing = [2 * kind + 1 for kind in (0, 1) if depth[kind]]
            letter = int(rng.choice(opening + closing))
            depth[letter // 2] += -1 if letter % 2 else 1
            letters.append(letter)
            labels.append((depth[0] > 0) + 2 * (depth[1] > 0))
        return self.labelled(letters, labels)
