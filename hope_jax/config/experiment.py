"""The configuration: frozen dataclasses (the schema and its defaults) and the base ConfigDict made from them.

Config files call `base_config()`, change values, and return it; the front turns the result into an
`ExperimentConfig` with `hope_jax.config.values.resolve`. Floors 1 to 4 see neither.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ml_collections import config_dict

from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.ranges import Count, Positive, Range, Whole
from hope_jax.learning.teach import Teach
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.memory.titan import TitanOptions
from hope_jax.models.spec import Architecture
from hope_jax.optim.outer import Optim, Policy


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
    param_policy: Policy = "all"  # which parameters train
    accumulate: Count = 1  # parts of each device's rows that a step reads one after the other
    remat: Literal["none", "layers"] = "none"  # layers: keep their inputs alone, and read each again backward
    fsdp: bool = False  # split parameters, optimizer and persistent fast state over the devices, at rest
    profile: bool = False  # write a trace of a few steps to <workdir>/profile


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

    model: Architecture = Architecture()
    cms: CmsOptions = CmsOptions()
    titan: TitanOptions = TitanOptions()
    self_modifying_titans: SelfModifyingTitans = SelfModifyingTitans()
    teach: Teach = Teach()
    memory: MemoryOptions = MemoryOptions()
    train: TrainConfig = TrainConfig()
    optim: Optim = Optim()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()


class OrderedConfig(config_dict.ConfigDict):
    """A ConfigDict that keeps the order of its keys, also of plain dicts assigned in place of its fields:
    the order of `cms.levels` is that of the chain."""

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
                        f"level: config.cms.levels.{name} = level(...))"
                    )
        super().update(*other, **kwargs)


def to_config_dict(value: object) -> OrderedConfig:
    """A dataclass instance as a ConfigDict: nested, key order kept, None as a typed placeholder."""
    out, hints = OrderedConfig(), typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, f.name)
        if isinstance(item, Mapping):
            entries = {
                key: to_config_dict(entry) if dataclasses.is_dataclass(entry) else entry
                for key, entry in item.items()
            }
            out[f.name] = OrderedConfig(entries)
        elif type(None) in (kinds := typing.get_args(hints[f.name])):
            out[f.name] = config_dict.placeholder(next(kind for kind in kinds if kind is not type(None)))
            out[f.name] = item
        else:
            out[f.name] = to_config_dict(item) if dataclasses.is_dataclass(item) else item
    return out


def base_config() -> OrderedConfig:
    """The default configuration as a ConfigDict for config files to change and return."""
    return to_config_dict(ExperimentConfig())


def level(**values: Any) -> OrderedConfig:
    """One CMS level for `config.cms.levels`, e.g. `level(update_period=4, lr=3e-4)`."""
    return to_config_dict(Level(**values))
