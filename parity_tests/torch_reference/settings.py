"""Everything that shapes a computation and is not a parameter."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Level:
    """One CMS level, or the TITAN memory: its period C in tokens, and its inner optimizer."""

    name: str
    period: int
    lr: float = 0.1
    optimizer: str = "momentum"
    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class SelfMod:
    """Self-modifying Titans. chunk: tokens between writes of the generators; chunk_memory: of M_memory."""

    chunk: int = 8
    chunk_memory: int = 64
    eta_scale: float = 1e-3
    qk_norm: bool = True
    adaptive_q: bool = False
    use_alpha: bool = True
    rank1: bool = True
    objective: str = "l2"
    stopgrad_vhat: bool = True
    momentum: float = 0.0


@dataclass(frozen=True)
class Arch:
    """An architecture.

    style: modern or reference. levels: of the CMS, in chain order. connection: sequential, independent or
    nested. titan: the TITAN memory's level. self_modifier: False: its writes are steps along the teach signal
    alone. correction_clip: bound on a token's |SelfModifier| over |delta|, 0: off. qk_norm: none, l2 or rms.
    window: tokens that attention sees, 0: all. read_clip: bound on the norm of each memory's MLP per token,
    0: off (the reference style has one while it trains). dtype: of activations.
    """

    variant: str
    style: str
    heads: int
    levels: tuple[Level, ...] = ()
    connection: str = "sequential"
    titan: Level = Level("titan", 8)
    self_modifier: bool = True
    correction_clip: float = 0.0
    self_mod: SelfMod = SelfMod()
    qk_norm: str = "rms"
    rope_theta: float = 10000.0
    window: int = 0
    read_clip: float = 0.0
    dtype: torch.dtype = torch.float64

    @property
    def modern(self) -> bool:
        """Pre-norm, rotary positions, RMSNorm; else post-norm without positions, LayerNorm."""
        return self.style == "modern"


@dataclass(frozen=True)
class Rules:
    """How a stream is read and written.

    chunk: N tokens. truncate: K tokens between cuts, a multiple of N; 0: K = N. Teach signals are times
    teach_scale, then times schedule, then bounded to teach_clip per token (0: off). source: per_layer or
    global. own_output: each level learns from its own output's cotangent, not the block's. metric, threshold:
    of the gate; None: always open. write_clip, delta_clip: bounds relative to the slow weights; 0: off.
    flush: write unfinished periods at the end of the stream.
    """

    chunk: int
    truncate: int = 0
    teach_scale: float = 1.0
    schedule: float = 1.0
    teach_clip: float = 0.0
    source: str = "per_layer"
    own_output: bool = True
    metric: str = "l2"
    threshold: float | None = None
    write_clip: float = 0.0
    delta_clip: float = 0.0
    flush: bool = False
