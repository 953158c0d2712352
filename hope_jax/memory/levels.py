"""What a level of a memory is (Eqs. 70-71), and what all memories share: gate, bounds, whose they are."""

from dataclasses import dataclass
from typing import Literal

from hope_jax.core.ranges import Count, Decay, NonNegative, Positive

Metric = Literal["l2", "loss", "logit_entropy"]


@dataclass(frozen=True)
class Level:
    """One memory with an update period: a CMS level, or the TITAN memory."""

    update_period: Count  # tokens between writes (C)
    lr: NonNegative  # inner learning rate (eta)
    optimizer: str = "momentum"  # hope_jax.memory.rules.OPTIMIZERS; titan.level: also titans
    beta: Decay = 0.9  # inner momentum (no bias correction)
    beta2: Decay = 0.999  # second moment of `preconditioned` and `muon`
    eps: Positive = 1e-8  # added to the root of the second moment, and to a projected direction's norm


@dataclass(frozen=True)
class MemoryOptions:
    """Which periods are written, bounds on writes, whose memory a fast state is, and how long it lives."""

    surprise_metric: Metric = "l2"  # l2: norm of the scaled teach signal
    surprise_threshold: NonNegative | None = None  # least mean surprise of a written period; None: all
    write_clip: NonNegative = 0.02  # bound on one write: |eta u|_F <= write_clip |theta|_F; 0: off
    delta_clip: NonNegative = 0.5  # bound on all writes: |Delta|_F <= delta_clip |theta|_F; 0: off
    scope: Literal["example", "batch"] = "example"  # one fast state per example, or one for the batch
    lifetime: Literal["context", "persistent"] = "context"  # persistent: over steps, two_pass and scope=batch
    reset_at_document: bool = False  # start afresh at each document of a packed row
