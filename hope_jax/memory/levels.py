"""The level clock: periods on the absolute token positions of a context (SPEC §1 "grid", Eqs. 70-71)."""

from typing import NamedTuple

from hope_jax.types import Array


class LevelSpec(NamedTuple):
    """The constants of one level.

    update_period: tokens between writes (C).
    lr: inner learning rate (eta).
    optimizer: a name of `hope_jax.memory.rules.VARIANTS`.
    beta, beta2, eps: its constants.
    """

    name: str
    update_period: int
    lr: float
    optimizer: str = "momentum"
    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class ChunkPeriods(NamedTuple):
    """How the tokens of one chunk fall into a level's periods.

    whole: complete periods that begin and end inside the chunk.
    rest: tokens after the last of them.
    """

    whole: int
    rest: int


def split_chunk(chunk_tokens: int, update_period: int) -> ChunkPeriods:
    """Periods of a chunk that starts on the grid. A rest appears only in the last chunk of a stream."""
    return ChunkPeriods(*divmod(chunk_tokens, update_period))


def spans_chunks(update_period: int, chunk_size: int) -> bool:
    """True if the level gathers several chunks of `chunk_size` tokens before it writes."""
    return update_period > chunk_size


def is_due(tokens_seen: Array | int, update_period: int) -> Array | bool:
    """True where a level is to be written: its token count is a multiple of its period."""
    return tokens_seen % update_period == 0
