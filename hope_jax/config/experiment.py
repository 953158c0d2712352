"""The configuration: frozen dataclasses (the schema and its defaults) and the base ConfigDict made from them.

Config files call `base_config()`, change values, and return it; the front turns the result into an
`ExperimentConfig` with `hope_jax.config.check.resolve`. Below the models floor nothing sees either.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from ml_collections import config_dict

from hope_jax.core.errors import ConfigError, instead

Activation = Literal["gelu", "relu", "silu"]
BlockVariant = Literal[
    "transformer",
    "transformer_pp",
    "hope_attention",
    "hope_selfmod",
    "hope_hybrid",
    "titan",
    "gated_deltanet",
]


class Range(NamedTuple):
    """Bounds of a number, `low` included and `high` included unless said otherwise."""

    low: float
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def holds(self, value: float) -> bool:
        """True if `value` is finite and within the bounds."""
        low_ok = value > self.low if self.above_low else value >= self.low
        high_ok = value < self.high if self.below_high else value <= self.high
        return math.isfinite(value) and low_ok and high_ok

    def __str__(self) -> str:
        low = f"{'above' if self.above_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below_high else 'at most'} {self.high:g}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above_low=True)]
Decay = Annotated[float, Range(0, 1, below_high=True)]
Fraction = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class LevelConfig:
    """One memory with an update period (a CMS level, or the TITAN memory)."""

    update_period: Count = 16  # tokens between writes (C)
    lr: NonNegative | None = None  # inner learning rate; None: model.self_mod_lr
    optimizer: str = "momentum"  # hope_jax.memory.rules.VARIANTS; titan_level: also titans
    beta: Decay = 0.9  # inner momentum (no bias correction)
    beta2: Decay = 0.999  # second moment of `preconditioned` and `muon`
    eps: Positive = 1e-8  # added to the root of the second moment


@dataclass(frozen=True)
class TeachScheduleConfig:
    """Multiplier on the teach signal over training steps; 0 switches a part off."""

    warmup_steps: Whole = 0  # linear rise from 0 to 1
    decay_start: Whole = 0  # step at which the fall from 1 to 0 starts
    decay_duration: Whole = 0  # steps that it takes


@dataclass(frozen=True)
class SelfModConfig:
    """The SelfModifier of the TITAN memory (`selfmod_off` ablates it)."""

    enabled: bool = True  # False: a write is a step along the teach signal alone
    clip: NonNegative = 0.0  # per-token bound on its correction over the teach signal's norm; 0: off


@dataclass(frozen=True)
class SelfModifyingTitansConfig:
    """Self-modifying Titans (Eqs. 83-93), the first memory of `hope_selfmod`."""

    chunk_size: Count = 8  # tokens between writes of the generators
    chunk_size_memory: Count = 64  # tokens between writes of M_memory
    projection_skip: bool = True  # learned skip of M_eta and M_alpha; the others' identity residual stays
    adaptive_q: bool = False  # queries from a memory M_q instead of a fixed projection
    local_conv_window: Whole = 4  # causal depthwise convolution before it, within documents, tokens; 0: off
    objective: Literal["l2", "dot"] = "l2"  # inner loss of its memories
    stopgrad_vhat: bool = True  # cut the gradient at the self-generated targets
    rank1_precondition: bool = True  # the factor (alpha I - eta k k^T) of the write
    use_alpha: bool = True  # data-dependent retention; False: 1
    alpha_init: Literal["style", "near_one", "half"] = "style"  # style: near_one if modern, half if reference
    momentum: Decay = 0.0  # of its writes
    value_norm: NonNegative = 0.0  # that values are scaled to; 0: as M_v makes them (Eqs. 83-93)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, memories and their local learning."""

    block_variant: BlockVariant = "hope_attention"  # what a block is made of
    style: Literal["modern", "reference"] = "modern"  # pre-norm, RoPE, qk-norm | the published post-norm
    vocab_size: Annotated[int, Range(2)] = 32000  # embedding rows; at least the tokenizer's ids
    dim: Count = 512  # width of the residual stream
    num_layers: Count = 12  # blocks
    heads: Count = 8  # attention heads; dim / heads is even
    mlp_multiplier: Count = 4  # hidden width of the transformer's MLP over dim
    activation: Activation = "gelu"  # of the transformer's MLP, the CMS and TITAN; SwiGLU has silu
    qk_norm: Literal["style", "none", "l2", "rms"] = "style"  # style: rms if modern, none if reference
    rope_theta: Positive = 10000.0  # RoPE's base (modern style)
    sliding_window: Whole = 0  # tokens that attention sees; 0: all
    local_conv_window: Whole = 0  # causal depthwise convolution before attention, within documents; 0: off
    cms_levels: Mapping[str, LevelConfig] = field(  # by name, in the order of the chain; {}: no CMS
        default_factory=lambda: {"cms_fast": LevelConfig(update_period=16)}
    )
    cms_hidden_multiplier: Count = 4  # hidden width of a CMS level over dim
    cms_flush_partial_at_end: bool = False  # write a period that the stream's end cuts short
    titan_level: LevelConfig = LevelConfig(update_period=8)  # TITAN memory (hope_hybrid, titan)
    titan_hidden_multiplier: Count = 4  # hidden width of the TITAN memory and its SelfModifier over dim
    self_mod: SelfModConfig = SelfModConfig()
    self_mod_lr: NonNegative = 1e-3  # inner rate of levels that name none; scale of eta in hope_selfmod
    self_modifying: SelfModifyingTitansConfig = SelfModifyingTitansConfig()
    teach_scale: NonNegative = 0.1  # multiplier on the teach signal
    teach_clip: NonNegative = 0.0  # per-token L2 bound on the teach signal; 0: off
    teach_schedule: TeachScheduleConfig = TeachScheduleConfig()
    surprise_threshold: NonNegative | None = None  # least mean surprise of a written period; None: all
    surprise_metric: Literal["l2", "loss", "logit_entropy"] = "l2"  # l2: norm of the scaled teach signal


@dataclass(frozen=True)
class TeachConfig:
    """Where the teach signal comes from."""

    source: Literal["per_layer", "global"] = "per_layer"  # dL/d(block output) | dL/dh at the LM head
    normalize: Literal["token", "batch_mean"] = "token"  # of the summed loss | over the supervised tokens


@dataclass(frozen=True)
class CmsConfig:
    """How the levels of the Continuum Memory System are connected and learn."""

    connection: Literal["sequential", "independent", "nested"] = "sequential"  # Eqs. 70, 74, 72
    norm: Literal["layer", "none"] = "layer"  # of a level's input: LayerNorm | none
    delta_at: Literal["own_output", "block_output"] = "own_output"  # the output whose gradient writes a level


@dataclass(frozen=True)
class MemoryConfig:
    """Whose memory a fast state is, how long it lives, and its bounds."""

    scope: Literal["example", "batch"] = "example"  # one fast state per example, or one for the batch
    lifetime: Literal["context", "persistent"] = "context"  # persistent: over steps, two_pass and scope=batch
    reset_at_document: bool = False  # start afresh at each document of a packed row
    write_clip: NonNegative = 0.02  # bound on one write: |eta u|_F <= write_clip |theta|_F; 0: off
    delta_clip: NonNegative = 0.5  # bound on all writes: |Delta|_F <= delta_clip |theta|_F; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop."""

    algorithm_mode: Literal["online", "two_pass", "through_writes"] = "online"  # when memories write
    online_chunk_size: Whole = 0  # N; 0: max(16, smallest period of CMS, else TITAN); no memories: seq_len
    truncate_tokens: Whole = 0  # K, a multiple of N; 0: N
    steps: Count = 1000  # number of the last step
    step_offset: Whole = 0  # steps that count as done, for relaunches: schedules and data start after them
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # of initialisation, data order and sampling
    resume: Literal["auto", "never"] = "auto"  # continue a workdir's run | refuse a workdir that holds one
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of activations and matmuls
    param_policy: Literal["all", "memories_frozen", "backbone_frozen"] = "all"  # which parameters train
    fsdp: bool = False  # split parameters, optimizer and persistent fast state over the devices, at rest
    profile: bool = False  # write a trace of a few steps to <workdir>/profile


@dataclass(frozen=True)
class M3Config:
    """M3 (*Nested Learning*, Algorithm 1), under `optim.name=m3`. Its rate has the gradient's unit."""

    slow_chunk: Count = 5  # f: steps between writes of the slow momentum
    beta1: Positive = 0.9  # weight of a gradient in the fast momentum (a sum, no decay)
    beta2: Positive = 0.999  # weight of a squared gradient in the second moment (a sum, no decay)
    beta3: NonNegative = 0.9  # weight of f steps' gradients in the slow momentum; 0: no slow momentum
    alpha: NonNegative = 1.0  # weight of the slow momentum in the update
    ns_steps: Whole = 3  # T: Newton-Schulz iterations
    eps: Positive = 1e-8  # added to the root of the second moment, and to the norm before Newton-Schulz


@dataclass(frozen=True)
class OptimConfig:
    """The outer optimizer. `muon_hybrid` and `m3` update the matrices of the blocks, `muon` the embedding
    too; AdamW updates the rest."""

    name: Literal["adamw", "muon_hybrid", "muon", "m3"] = "muon_hybrid"  # who updates the matrices
    lr: NonNegative = 2.5e-4  # peak
    adam_lr: NonNegative | None = None  # of what AdamW updates beside Muon or M3; None: lr
    weight_decay: NonNegative = 0.02  # decoupled; matrices of the blocks only
    momentum: Decay = 0.95  # Muon
    b1: Decay = 0.9  # AdamW
    b2: Decay = 0.999  # AdamW
    eps: Positive = 1e-8  # AdamW
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    warmup_steps: Whole = 0  # linear, from 0 to lr
    cooldown_steps: Whole = 0  # linear, at the end of `constant`
    final_lr_fraction: Fraction = 0.1  # of lr, where the schedule ends
    grad_clip: NonNegative = 1.0  # global norm; 0: off
    m3: M3Config = M3Config()


@dataclass(frozen=True)
class DataConfig:
    """Training text. `batch_size` is global: all devices and processes together."""

    source: str = "embedded"  # embedded | folder of texts | of token shards (docs/data.md) | synthetic:TASK
    seq_len: Annotated[int, Range(2)] = 2048  # tokens a row
    batch_size: Count = 6  # rows a step, all devices and processes together
    tokenizer: str = "embedded"  # embedded | path of a sentencepiece model
    prefetch: Whole = 4  # batches prepared ahead
    workers: Whole = 0  # processes that prepare them; 0: a thread. Batches are the same
    mixture: Mapping[str, Positive] = field(default_factory=dict)  # shards NAME in `source`: weight; sum 1
    task_options: Mapping[str, Whole] = field(default_factory=dict)  # of synthetic:TASK (docs/evals)
    verify_shards: bool = True  # hold every shard against its digest at the start; False: only its size


@dataclass(frozen=True)
class EvalConfig:
    """Periodic held-out loss."""

    every: Whole = 500  # steps; 0: only at the end
    batches: Whole = 16  # at most; 0: the whole held-out split (of shards: in the mixture's proportions)
    generate_tokens: Whole = 64  # length of each sample in the report; 0: none
    alarm: Literal["warn", "stop", "off"] = "warn"  # of harmful or idle memories; stop: harm ends a run


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept."""

    every: Whole = 1000  # steps; one is always written at the end
    keep_last: Count = 3  # newest checkpoints that are kept
    keep_every: Whole = 0  # steps between checkpoints that are kept for good; 0: none
    verify: bool = True  # before resuming: hold every file against its digest


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: Count = 10  # steps between logged rows
    tensorboard: bool = True  # event files in <workdir>/tb
    wandb: bool = False  # Weights & Biases; needs its package
    wandb_project: str = "hope_jax"  # project name there


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that a run depends on."""

    model: ModelConfig = ModelConfig()
    teach: TeachConfig = TeachConfig()
    cms: CmsConfig = CmsConfig()
    memory: MemoryConfig = MemoryConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()


class OrderedConfig(config_dict.ConfigDict):
    """A ConfigDict that keeps the order of its keys, also of plain dicts assigned in place of its fields:
    the order of `model.cms_levels` is that of the chain."""

    def __init__(
        self,
        initial_dictionary: Mapping[str, Any] | None = None,
        type_safe: bool = True,
        convert_dict: bool = True,
    ) -> None:
        super().__init__(initial_dictionary, type_safe, convert_dict, sort_keys=False)

    def update(self, *other: Mapping[str, Any], **kwargs: Any) -> None:
        """As a ConfigDict's, but a plain dict only changes a group that is there: it names a few of its keys.

        Raises: ConfigError for a plain dict under an unknown name."""
        for given in (*other, kwargs):
            for name, value in given.items() if isinstance(given, dict) else ():
                if isinstance(value, dict) and name not in self:
                    raise ConfigError(
                        f"update: there is no {name}; {instead(name, self.keys(), 'there are')} (to add a "
                        f"level: config.model.cms_levels.{name} = level(...))"
                    )
        super().update(*other, **kwargs)


def to_config_dict(value: object) -> OrderedConfig:
    """A dataclass instance as a ConfigDict: nested, key order kept, None as a typed placeholder."""
    out = OrderedConfig()
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, f.name)
        if dataclasses.is_dataclass(item):
            out[f.name] = to_config_dict(item)
        elif isinstance(item, Mapping):
            nested = OrderedConfig()
            for key, entry in item.items():
                nested[key] = to_config_dict(entry) if dataclasses.is_dataclass(entry) else entry
            out[f.name] = nested
        elif type(None) in typing.get_args(hints[f.name]):
            kind = next(t for t in typing.get_args(hints[f.name]) if t is not type(None))
            out[f.name] = config_dict.placeholder(kind)
            if item is not None:
                out[f.name] = item
        else:
            out[f.name] = item
    return out


def base_config() -> OrderedConfig:
    """The default configuration as a ConfigDict for config files to change and return."""
    return to_config_dict(ExperimentConfig())


def level(**values: Any) -> OrderedConfig:
    """One CMS level for `config.model.cms_levels`, e.g. `level(update_period=4, lr=3e-4)`."""
    return to_config_dict(LevelConfig(**values))
