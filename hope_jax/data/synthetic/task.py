"""What a synthetic task is: strings of symbols, with exact answers at some of their positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, NamedTuple

import numpy as np

from hope_jax.core.types import NO_TARGET

TRAIN = "train"
"""The split that is trained on; a task names the others."""


class Example(NamedTuple):
    """One string, int32 [n] each. tokens: what is read. targets: what is to be answered once the position has
    been read, `NO_TARGET` where nothing is asked. groups: where something is asked, the number by which an
    eval groups it (`Task.grouped_by`), else 0."""

    tokens: np.ndarray
    targets: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Task:
    """A task; its fields are the options that `data.task_options` sets, all whole numbers from 1. splits:
    what an eval measures, the one most like training first. grouped_by: the name of a group's number; "":
    positions are not grouped. signs: of the symbols; k* and v* are keys and values, each half of the option
    `vocab`, s* is all of it."""

    splits: ClassVar[tuple[str, ...]] = ("test",)
    grouped_by: ClassVar[str] = ""
    signs: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> Iterator[str]:
        """What is wrong with the options, a sentence each."""
        return iter(())

    def symbols(self) -> tuple[str, ...]:
        """The name of each token id, from 0."""
        vocab = int(vars(self).get("vocab", 0))
        sizes = {"k*": vocab // 2, "v*": vocab - vocab // 2, "s*": vocab}
        names = ([f"{s[0]}{i}" for i in range(sizes[s])] if s in sizes else [s] for s in self.signs)
        return tuple(chain.from_iterable(names))

    def most_tokens(self) -> int:
        """Length of the longest string in training: the option of that name, unless a task says otherwise."""
        return int(vars(self)["length"])

    def example(self, rng: np.random.Generator, split: str) -> Example:
        """A string of a split, drawn."""
        raise NotImplementedError

    def every(self, split: str) -> list[Example] | None:
        """All strings of a split, if they are so few that an eval reads each once; else None."""
        return None


def ask(tokens: np.ndarray, at: np.ndarray, answers: np.ndarray, groups: np.ndarray | None = None) -> Example:
    """A string [n] that is asked at positions `at` [m] for `answers` [m], of `groups` [m] (None: 0)."""
    targets, by = np.full(len(tokens), NO_TARGET, np.int32), np.zeros(len(tokens), np.int32)
    targets[at] = answers
    if groups is not None:
        by[at] = groups
    return Example(np.asarray(tokens, np.int32), targets, by)
