"""Prompts whose answer is known, and what all generators of them draw with."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hope_jax.data.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """What is asked: before + context + after, to which " " + answer is the beginning of a right reply.

    answers: the values asked for, in the order of the question. distractor: a value of the same kind and, as
    far as can be, length in tokens, which stands nowhere in the prompt. depths: share of the context's
    characters before each needle's beginning, in the order of the text. tokens: of BOS and the prompt.
    """

    before: str
    context: str
    after: str
    answers: tuple[str, ...]
    distractor: str
    depths: tuple[float, ...]
    tokens: int

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.before + self.context + self.after


def most(fits: Callable[[int], bool]) -> int:
    """The most units that fit: by doubling, then binary search. One unit fits; more fit ever less."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of a sample: they depend on the seed and the name alone, on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.dtype("<u4")))


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """So many draws that differ from each other."""
    found: list[str] = []
    while len(found) < count:
        if (drawn := draw()) not in found:
            found.append(drawn)
    return found


def rival(tokenizer: Tokenizer, answer: str, text: str, draw: Callable[[], str]) -> str:
    """A draw that stands nowhere in `text`, of as many tokens after a space as `answer` has, so that a
    model's liking for short texts decides nothing; of 200 draws that all differ, the nearest.

    The number of draws depends on the tokenizer: they want a generator of their own.
    """

    def tokens(value: str) -> int:
        return len(tokenizer.encode(" " + value))

    wanted, best, nearest = tokens(answer), "", float("inf")
    for _ in range(200):
        drawn = draw()
        while drawn in text:
            drawn = draw()
        if (apart := abs(tokens(drawn) - wanted)) < nearest:
            best, nearest = drawn, apart
        if not apart:
            break
    return best
