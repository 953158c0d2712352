"""Types that cross floors."""

from typing import Any, NamedTuple, TypeAlias

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
