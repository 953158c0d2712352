"""Types that cross floors."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax

PyTree: TypeAlias = Any
Array: TypeAlias = jax.Array

NO_TARGET = -1
"""Target value of a position that is not supervised."""


class Batch(NamedTuple):
    """One batch of packed rows (the host's share, or the whole, of a global batch).

    tokens: int32 [B, T] token ids.
    targets: int32 [B, T] the token that follows each position, `NO_TARGET` where none is supervised
        (padding, the last token of a document).
    segment_ids: int32 [B, T] document number within the row, from 1; 0 marks padding. Tokens of one number
        are one document, whatever lies between them (under `reset_at_document`: neighbours of one number).
    """

    tokens: Array
    targets: Array
    segment_ids: Array


K = TypeVar("K")
V = TypeVar("V")


class FrozenMapping(Mapping[K, V]):
    """A mapping that can be hashed, and whose order counts where two of them are compared."""

    def __init__(self, values: Mapping[K, V] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and list(self.items()) == list(other.items())

    def __repr__(self) -> str:
        return repr(self._values)
