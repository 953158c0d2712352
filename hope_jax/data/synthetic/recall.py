"""MQAR and MAD's tasks. Which value came with this key, in the context or in all of training (memorization)?
And a whole sequence is kept: selective copying, and compression into a state."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hope_jax.data.synthetic.task import Example, Task, ask

_POWER = 0.01
"""MQAR: a query g pairs after the last pair has a probability in proportion to g^(_POWER - 1)."""


@dataclass(frozen=True)
class Mqar(Task):
    """Multi-query associative recall (Arora et al. 2023): pairs, then each key once more, answered by its
    value; filler between. `half` and `double` have so many times the pairs, and tokens. vocab: keys and
    values, half each. pairs: of a string. length: its tokens."""

    vocab: int = 64
    pairs: int = 8
    length: int = 64

    signs: ClassVar[tuple[str, ...]] = ("_", "k*", "v*")
    splits: ClassVar[tuple[str, ...]] = ("test", "half", "double")
    grouped_by: ClassVar[str] = "distance"

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.vocab % 2 or self.vocab // 2 < 2 * self.pairs:
            yield f"vocab={self.vocab}: want an even number, at least {4 * self.pairs} for pairs={self.pairs}"
        if self.pairs < 2 or self.pairs % 2:
            yield f"pairs={self.pairs}: want an even number from 2, as one split has half of them"
        if self.length % 4 or self.length < 4 * self.pairs:
            yield f"length={self.length}: want a multiple of 4 from {4 * self.pairs} for pairs={self.pairs}"

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`. Queries stand at even distances from the pairs, each followed by its value."""
        times = {"half": 0.5, "double": 2}.get(split, 1)
        pairs, length = int(self.pairs * times), int(self.length * times)
        half = self.vocab // 2
        keys, values = 1 + rng.permutation(half)[:pairs], 1 + half + rng.integers(0, half, pairs)
        gaps = np.arange(1, (length - 2 * pairs) // 2 + 1)
        weights = gaps ** (_POWER - 1)
        at = 2 * pairs + 2 * (rng.choice(gaps, pairs, replace=False, p=weights / weights.sum()) - 1)
        tokens = np.zeros(length, np.int32)
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        tokens[at], tokens[at + 1] = keys, values
        return ask(tokens, at, values, groups=at - 2 * np.arange(pairs))


@dataclass(frozen=True)
class InContextRecall(Task):
    """MAD: keys are drawn again and again, each with a value that stays the same within the string; asked
    wherever a key comes back. vocab: keys and values, half each. length: tokens of a string."""

    vocab: int = 16
    length: int = 128

    signs: ClassVar[tuple[str, ...]] = ("k*", "v*")
    grouped_by: ClassVar[str] = "distance"

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.vocab < 4 or self.vocab % 2:
            yield f"vocab={self.vocab}: want an even number from 4"
        if self.length < 4 or self.length % 2:
            yield f"length={self.length}: want an even number from 4"

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`. The last key is one that came before."""
        half, pairs = self.vocab // 2, self.length // 2
        keys = rng.integers(0, half, pairs)
        keys[-1] = rng.choice(keys[:-1])
        values = (half + rng.integers(0, half, half))[keys]
        seen: dict[int, int] = {}
        at, groups = [], []
        for i, key in enumerate(keys.tolist()):
            if key in seen:
                at.append(2 * i)
                groups.append(2 * (i - seen[key]))
            seen[key] = i
        tokens = np.stack([keys, values], axis=1).reshape(-1)
        places = np.array(at)
        return ask(tokens, places, tokens[places + 1], np.array(groups))


@dataclass(frozen=True)
class FuzzyRecall(Task):
    """MAD: keys and values are motifs of 1 to `motif` different symbols; at test all keys have `motif`.
    vocab: symbols of keys and of values, about half each. length: tokens of the longest string. motif:
    symbols of the longest key and value."""

    vocab: int = 14
    length: int = 128
    motif: int = 3

    signs: ClassVar[tuple[str, ...]] = ("k*", "v*")

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.vocab < 2 * self.motif:
            yield f"vocab={self.vocab}: want at least {2 * self.motif} for motif={self.motif}"
        if self.length < 6 * self.motif:
            yield f"length={self.length}: want at least {6 * self.motif} for motif={self.motif}"

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`. Pairs until the string is full, then one of their keys again."""
        keys = self.vocab // 2
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        tokens: list[int] = []
        at: list[int] = []

        def motif(first: int, count: int, shortest: int) -> tuple[int, ...]:
            size = int(rng.integers(shortest, self.motif + 1))
            return tuple((first + rng.permutation(count)[:size]).tolist())

        def add(key: tuple[int, ...]) -> None:
            if key in known:
                start = len(tokens) + len(key) - 1
                at.extend(range(start, start + len(known[key])))
            else:
                known[key] = motif(keys, self.vocab - keys, 1)
            tokens.extend((*key, *known[key]))

        while len(tokens) + 4 * self.motif <= self.length:
            add(motif(0, keys, 1 if split == "train" else self.motif))
        add(list(known)[int(rng.integers(len(known)))])
        row, places = np.array(tokens), np.array(at)
        return ask(row, places, row[places + 1])


@dataclass(frozen=True)
class Memorization(Task):
    """MAD: a map from keys to values that is the same in every string and has to be learned by training.
    vocab: keys and values, half each. length: tokens of a string. table: names the map."""

    vocab: int = 254
    length: int = 32
    table: int = 1

    signs: ClassVar[tuple[str, ...]] = ("k*", "v*", "?")

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.vocab < 4 or self.vocab % 2:
            yield f"vocab={self.vocab}: want an even number from 4"
        if self.length % 2:
            yield f"length={self.length}: want an even number"

    def values(self) -> np.ndarray:
        """int64 [vocab / 2]: the value of each key."""
        half = self.vocab // 2
        return half + np.random.default_rng([self.table, half]).permutation(half)

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`: keys, each followed by the question mark, where its value is asked for."""
        keys = rng.integers(0, self.vocab // 2, self.length // 2)
        tokens = np.stack([keys, np.full_like(keys, self.vocab)], axis=1).reshape(-1)
        return ask(tokens, np.arange(1, self.length, 2), self.values()[keys])


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """MAD: some symbols among blanks, then the sign to copy, and as many blanks, at which they are asked for
    in order. vocab: symbols that are copied. length: tokens of a string. copied: symbols of a string."""

    vocab: int = 14
    length: int = 256
    copied: int = 16

    signs: ClassVar[tuple[str, ...]] = ("s*", "_", "copy")

    def problems(self) -> Iterator[str]:
        """See `Task`."""
        if self.length < 2 * self.copied + 1:
            yield f"length={self.length}: want at least {2 * self.copied + 1} for copied={self.copied}"

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
    order. MAD decodes the one vector at the sign; here all that the model carries may be used. vocab:
    different symbols. kept: symbols of a string."""

    vocab: int = 15
    kept: int = 31

    signs: ClassVar[tuple[str, ...]] = ("s*", "_", "end")

    def most_tokens(self) -> int:
        """See `Task`."""
        return 2 * self.kept + 1

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """See `Task`."""
        symbols = rng.integers(0, self.vocab, self.kept)
        tokens = np.concatenate([symbols, [self.vocab + 1], np.full(self.kept, self.vocab)])
        return ask(tokens, np.arange(self.kept + 1, 2 * self.kept + 1), symbols)
