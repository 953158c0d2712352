"""The configuration: frozen dataclasses (the schema and its defaults) and the base ConfigDict made from them.

Config files call `base_config()`, change values, and return it; the front turns the result into an
`ExperimentConfig` with `hope_jax.config_check.resolve`. Below the models floor nothing sees either.
"""

import dataclasses
import types as python_types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from ml_collections import config_dict


@dataclass(frozen=True)
class LevelConfig:
    """One memory with an update period (a CMS level, or the TITAN memory)."""

    update_period: int = 16  # tokens between writes (C)
    lr: float | None = None  # inner learning rate; None: model.self_mod_lr
    optimizer: str = "momentum"  # see hope_jax.memory.inner_optim.VARIANTS
    beta: float = 0.9  # inner momentum (no bias correction)
    beta2: float = 0.999  # second moment of `preconditioned` and `muon`
    eps: float = 1e-8


@dataclass(frozen=True)
class TeachScheduleConfig:
    """Multiplier on the teach signal over training steps; 0 switches a part off."""

    warmup_steps: int = 0
    decay_start: int = 0
    decay_duration: int = 0


@dataclass(frozen=True)
class SelfModConfig:
    """The SelfModifier of the TITAN memory (`selfmod_off` ablates it)."""

    enabled: bool = True


@dataclass(frozen=True)
class SelfModifyingTitansConfig:
    """Self-modifying Titans (Eqs. 83-93), the first memory of `hope_selfmod`."""

    chunk_size: int = 8  # tokens between writes of the generators
    chunk_size_memory: int = 64  # tokens between writes of M_memory
    projection_skip: bool = True
    adaptive_q: bool = False
    local_conv_window: int = 4  # 0: off
    objective: str = "l2"  # l2 | dot
    stopgrad_vhat: bool = True
    rank1_precondition: bool = True
    use_alpha: bool = True
    momentum: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, memories and their local learning."""

    block_variant: str = "hope_attention"
    style: str = "modern"  # modern | reference
    vocab_size: int = 32000
    dim: int = 512
    num_layers: int = 12
    heads: int = 8
    mlp_multiplier: int = 4  # hidden width of the transformer's MLP over dim
    qk_norm: str = "style"  # style (modern: rms, reference: none) | none | l2 | rms
    rope_theta: float = 10000.0
    sliding_window: int = 0  # tokens that attention sees; 0: all
    local_conv_window: int = 0  # causal depthwise convolution before attention; 0: off
    cms_levels: Mapping[str, LevelConfig] = field(
        default_factory=lambda: {"cms_fast": LevelConfig(update_period=16)}
    )
    cms_hidden_multiplier: int = 4
    cms_flush_partial_at_end: bool = False
    titan_level: LevelConfig = LevelConfig(update_period=8)
    self_mod: SelfModConfig = SelfModConfig()
    self_mod_lr: float = 1e-3  # inner learning rate of levels that name none
    self_modifying: SelfModifyingTitansConfig = SelfModifyingTitansConfig()
    teach_scale: float = 0.1
    teach_clip: float = 0.0  # per-token L2 bound on the teach signal; 0: off
    teach_schedule: TeachScheduleConfig = TeachScheduleConfig()
    surprise_threshold: float | None = None
    surprise_metric: str = "l2"  # l2 | loss | logit_entropy


@dataclass(frozen=True)
class TeachConfig:
    """Where the teach signal comes from."""

    source: str = "per_layer"  # per_layer: dL/d(block output) | global: dL/dh at the LM head
    normalize: str = "token"  # token: of the summed loss | batch_mean: divided by supervised tokens


@dataclass(frozen=True)
class CmsConfig:
    """How the Continuum Memory System learns."""

    delta_at: str = "own_output"  # own_output | block_output


@dataclass(frozen=True)
class MemoryConfig:
    """Whose memory a fast state is, how long it lives, and its bounds."""

    scope: str = "example"  # example | batch
    lifetime: str = "context"  # context | persistent (two_pass with scope=batch only)
    reset_at_document: bool = False
    write_clip: float = 0.02  # bound on one write: |eta u|_F <= write_clip |theta|_F; 0: off
    delta_clip: float = 0.5  # bound on all writes: |Delta|_F <= delta_clip |theta|_F; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop."""

    algorithm_mode: str = "online"  # online | two_pass | through_writes
    online_chunk_size: int = 0  # N; 0: max(16, smallest CMS period)
    truncate_tokens: int = 0  # K, a multiple of N; 0: N
    steps: int = 1000
    step_offset: int = 0  # first step's number, for relaunches: schedules and the data cursor start there
    seed: int = 0
    resume: str = "auto"  # auto: continue a workdir's run | never: refuse a workdir that holds one
    compute_dtype: str = "float32"  # float32 | bfloat16 | float64
    param_policy: str = "all"  # all | memories_frozen | backbone_frozen
    profile: bool = False  # write a trace of a few steps to <workdir>/profile


@dataclass(frozen=True)
class OptimConfig:
    """The outer optimizer."""

    name: str = "muon_hybrid"  # adamw | muon_hybrid
    lr: float = 2.5e-4
    adam_lr: float | None = None  # of the AdamW part of muon_hybrid; None: lr
    weight_decay: float = 0.02
    momentum: float = 0.95  # Muon
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    schedule: str = "cosine"  # cosine | constant (with cool-down)
    warmup_steps: int = 0
    cooldown_steps: int = 0  # linear, at the end of `constant`
    final_lr_fraction: float = 0.1
    grad_clip: float = 1.0  # global norm; 0: off


@dataclass(frozen=True)
class DataConfig:
    """Training text. `batch_size` is global: all devices and processes together."""

    source: str = "embedded"  # embedded | a folder of text files
    seq_len: int = 2048
    batch_size: int = 6
    tokenizer: str = "embedded"  # embedded | path of a sentencepiece model
    prefetch: int = 4  # batches prepared ahead
    mixture: Mapping[str, float] = field(default_factory=dict)  # weights by source, for mixed shards


@dataclass(frozen=True)
class EvalConfig:
    """Periodic held-out loss."""

    every: int = 500  # steps; 0: only at the end
    batches: int = 16  # at most; 0: the whole held-out split
    generate_tokens: int = 64  # length of each sample in the report; 0: none


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept."""

    every: int = 1000  # steps; one is always written at the end
    keep_last: int = 3
    keep_every: int = 0  # steps between checkpoints that are kept for good; 0: none


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: int = 10  # steps
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "hope_jax"


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


def to_config_dict(value: object) -> config_dict.ConfigDict:
    """A dataclass instance as a ConfigDict: nested, key order kept, None as a typed placeholder."""
    out = config_dict.ConfigDict(sort_keys=False)
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, f.name)
        if dataclasses.is_dataclass(item):
            out[f.name] = to_config_dict(item)
        elif isinstance(item, Mapping):
            nested = config_dict.ConfigDict(sort_keys=False)
            for key, entry in item.items():
                nested[key] = to_config_dict(entry) if dataclasses.is_dataclass(entry) else entry
            out[f.name] = nested
        elif isinstance(hints[f.name], python_types.UnionType):
            kind = next(t for t in typing.get_args(hints[f.name]) if t is not type(None))
            out[f.name] = config_dict.placeholder(kind)
            if item is not None:
                out[f.name] = item
        else:
            out[f.name] = item
    return out


def base_config() -> config_dict.ConfigDict:
    """The default configuration as a ConfigDict for config files to change and return."""
    return to_config_dict(ExperimentConfig())


def level(**values: object) -> config_dict.ConfigDict:
    """One CMS level for `config.model.cms_levels`, e.g. `level(update_period=4, lr=3e-4)`."""
    return to_config_dict(LevelConfig(**values))  # type: ignore[arg-type]
