"""A level of a memory, written at token counts that are multiples of its period (Eqs. 70-71)."""

from typing import NamedTuple


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
