"""The configuration as a whole: combinations that cannot run, found before anything compiles."""

import itertools
import math
from collections.abc import Iterator

from hope_jax.config.chunks import (
    cms_levels_of,
    document_multiple,
    fits,
    has_memories,
    levels_of,
    online_chunk,
    periods_of,
    shortest_selfmod_cut,
    truncate,
)
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import as_error
from hope_jax.core.errors import instead
from hope_jax.memory.levels import Level
from hope_jax.memory.rules import OPTIMIZERS, RULES
from hope_jax.models.blocks import BLOCKS, PARTS, SELF_MOD, SWIGLU
from hope_jax.models.spec import Architecture

RESERVED_LEVELS = ("titan", "generators", "memory", "state")
"""Levels of other memories, beside which those of the CMS are reported."""

_WEIGHTS_APART = 1e-6
"""How far the weights of a mixture may be from 1 in sum: rounding."""


def validate(config: ExperimentConfig, *, device_count: int | None = None) -> None:
    """Checks what no single key shows. device_count: over all processes; None: not known yet.

    Raises: ConfigError with every problem, one line each.
    """
    problems = [
        *_model_problems(config),
        *_memory_problems(config),
        *_document_problems(config),
        *_connection_problems(config),
        *_train_problems(config),
        *_accumulate_problems(config),
        *_mixture_problems(config),
        *_batch_problems(config, device_count),
    ]
    if problems:
        raise as_error(problems)


def warnings(config: ExperimentConfig) -> list[str]:
    """What runs, but perhaps not as meant; a line each."""
    nested = _nested_warnings(config) if config.cms.connection == "nested" else ()
    return [*_period_warnings(config), *nested, *_idle_key_warnings(config), *_row_warnings(config)]


def _period_warnings(config: ExperimentConfig) -> Iterator[str]:
    """Of writes that are read late or never."""
    mode, chunk, tokens = config.train.algorithm_mode, online_chunk(config), config.data.seq_len
    fresh, taught = config.memory.lifetime == "context", levels_of(config)
    late = {name: level.update_period for name, level in taught if level.update_period < chunk}
    if late and mode != "two_pass":
        yield (
            f"writes of {_named(late)} are read only from the next chunk of {chunk} tokens on: their periods "
            "are shorter (train.online_chunk_size sets the chunk)"
        )
    if mode == "two_pass" and fresh and taught:
        yield (
            "train.algorithm_mode=two_pass with memory.lifetime=context: memory writes feed nothing but "
            "statistics; memory.lifetime=persistent keeps them over steps"
        )
    longer = {name: level.update_period for name, level in taught if level.update_period > tokens}
    if longer and fresh:
        yield (
            f"{_named(longer)}: the period is longer than data.seq_len={tokens}, so the level is never "
            "written under memory.lifetime=context"
        )
    unwritten = {
        path: period
        for path, period in periods_of(config).items()
        if path.startswith("self_modifying_titans") and period > tokens
    }
    if unwritten:
        yield f"{_named(unwritten)}: longer than data.seq_len={tokens}, so these memories are never written"


def _named(periods: dict[str, int]) -> str:
    return ", ".join(f"{name} ({period})" for name, period in periods.items())


def _idle_key_warnings(config: ExperimentConfig) -> Iterator[str]:
    """Of keys that have no effect."""
    mode, train = config.train.algorithm_mode, config.train
    if config.cms.delta_at == "own_output" and config.teach.source == "global" and levels_of(config):
        yield (
            "cms.delta_at=own_output has no effect under teach.source=global: every level learns from the "
            "signal at the LM head"
        )
    modifier = config.titan.self_modifier
    if modifier.clip and not modifier.enabled:
        yield "titan.self_modifier.clip has no effect under titan.self_modifier.enabled=False"
    if mode == "two_pass" and (train.online_chunk_size or train.truncate_tokens):
        yield (
            "train.online_chunk_size and train.truncate_tokens have no effect on training under two_pass: it "
            "reads the sequence as one chunk"
        )
    if mode == "through_writes" and train.truncate_tokens:
        yield "train.truncate_tokens has no effect under through_writes: nothing is cut"
    if config.data.mixture and config.data.source == "embedded":
        yield "data.mixture has no effect under data.source=embedded"
    texts = config.data.mixture or config.data.tokenizer != "embedded"
    if config.data.source.startswith("synthetic:") and texts:
        yield f"data.mixture and data.tokenizer have no effect under data.source={config.data.source}"


def _row_warnings(config: ExperimentConfig) -> Iterator[str]:
    """Of how a row is cut."""
    mode, tokens = config.train.algorithm_mode, config.data.seq_len
    if mode == "online" and not has_memories(config) and truncate(config) < tokens:
        yield (
            f"the gradient through attention is cut every {truncate(config)} tokens, which "
            f"{config.model.block_variant} does not need: train.online_chunk_size=0 reads the whole sequence"
        )
    if document_multiple(config) == tokens > 1:
        yield (
            "memory.reset_at_document pads every document to a multiple of the online chunk, here "
            f"data.seq_len={tokens}: no row holds two documents"
        )


def _model_problems(config: ExperimentConfig) -> Iterator[str]:
    model = config.model
    if model.dim % model.heads:
        yield f"model.heads={model.heads} does not divide model.dim={model.dim}"
    elif model.style == "modern" and (model.dim // model.heads) % 2:
        yield (
            f"model.dim={model.dim} over model.heads={model.heads} is {model.dim // model.heads}: RoPE turns "
            "pairs, so the width of a head must be even"
        )
    variant = model.block_variant
    if SWIGLU in BLOCKS[variant] and model.activation != Architecture().activation:
        yield (
            f"model.activation={model.activation} has no place in block_variant={variant}: its SwiGLU "
            "has silu by definition; leave the key out, or use block_variant=transformer"
        )
    for name in RESERVED_LEVELS:
        if name in config.cms.levels:
            yield f"cms.levels.{name}: the name belongs to another memory's level; choose another"


def _memory_problems(config: ExperimentConfig) -> Iterator[str]:
    memory, chunk = config.memory, online_chunk(config)
    name = "data.seq_len" if config.train.algorithm_mode == "two_pass" else "the online chunk"
    for path, period in periods_of(config).items():
        if not fits(chunk, period):
            yield f"{path}={period} neither divides {name} ({chunk} tokens) nor is a multiple of it"
    for path, level in levels_of(config):
        offered = tuple(RULES) if path == "titan.level" else OPTIMIZERS
        if level.optimizer not in offered:
            yield f"{path}.optimizer={level.optimizer!r}: unknown; {instead(level.optimizer, offered)}"
    if memory.lifetime == "persistent":
        if config.train.algorithm_mode != "two_pass":
            yield (
                f"memory.lifetime=persistent needs train.algorithm_mode=two_pass, not "
                f"{config.train.algorithm_mode}; use memory.lifetime=context"
            )
        if memory.scope != "batch":
            yield (
                "memory.lifetime=persistent needs memory.scope=batch: a memory that outlives its examples "
                "belongs to none of them"
            )


def _document_problems(config: ExperimentConfig) -> Iterator[str]:
    if not config.memory.reset_at_document:
        return
    if config.memory.scope == "batch":
        yield (
            "memory.reset_at_document=True needs memory.scope=example, not batch: the documents of different "
            "examples begin at different places"
        )
    if config.memory.lifetime == "persistent":
        yield (
            "memory.reset_at_document=True needs memory.lifetime=context, not persistent: a memory that "
            "starts afresh at each document does not outlive a step"
        )
    chunk, tokens = online_chunk(config), config.data.seq_len
    if chunk <= tokens and tokens % chunk:
        yield (
            f"data.seq_len={tokens} is no multiple of the online chunk ({chunk} tokens), as "
            f"memory.reset_at_document=True needs it; use {tokens - tokens % chunk}, or another "
            "train.online_chunk_size"
        )


def _by_period(config: ExperimentConfig) -> list[tuple[str, Level]]:
    """The CMS levels of the variant, slowest first."""
    return sorted(cms_levels_of(config), key=lambda item: -item[1].update_period)


def _connection_problems(config: ExperimentConfig) -> Iterator[str]:
    by_period = _by_period(config)
    if config.cms.connection == "independent" and "mix" in config.cms.levels and by_period:
        yield (
            "cms.levels.mix: cms.connection=independent keeps its weights under this name; give the "
            "level another"
        )
    if config.cms.connection != "nested":
        return
    for (slow, slower), (fast, faster) in itertools.pairwise(by_period):
        if slower.update_period == faster.update_period or slower.update_period % faster.update_period:
            yield (
                f"{slow}.update_period={slower.update_period} is no larger multiple of "
                f"{fast}.update_period={faster.update_period}, as cms.connection=nested needs: change "
                "one of them, or use cms.connection=sequential"
            )


def _nested_warnings(config: ExperimentConfig) -> Iterator[str]:
    """Levels that restart within every online chunk, so that no read sees their own writes."""
    chunk, by_period = online_chunk(config), _by_period(config)
    for at, (name, level) in enumerate(by_period):
        slower = [other.update_period for _, other in by_period[:at]][-2:]
        if not slower or slower[-1] > chunk:
            continue
        only = "start that training gave it" if len(slower) > 1 and slower[0] <= chunk else "learned start"
        yield (
            f"{name} ({level.update_period}) restarts every {slower[-1]} tokens under cms.connection=nested, "
            f"within the online chunk of {chunk}: only its {only} is read, never its own writes"
        )


def _train_problems(config: ExperimentConfig) -> Iterator[str]:
    train, optim, chunk = config.train, config.optim, online_chunk(config)
    if train.algorithm_mode != "two_pass":
        if chunk > config.data.seq_len:
            yield (
                f"the online chunk of {chunk} tokens (train.online_chunk_size, or its default) is larger "
                f"than data.seq_len={config.data.seq_len}"
            )
        if train.truncate_tokens % chunk:
            yield f"train.truncate_tokens={train.truncate_tokens}: no multiple of the online chunk ({chunk})"
        shortest = shortest_selfmod_cut(config)
        if SELF_MOD in BLOCKS[config.model.block_variant] and truncate(config) < shortest:
            yield (
                f"train.truncate_tokens={train.truncate_tokens} is below {shortest}, two periods of "
                "self_modifying_titans.chunk_size_memory"
            )
    if train.step_offset >= train.steps:
        yield (
            f"train.steps={train.steps} is the number of the last step and must be larger than "
            f"train.step_offset={train.step_offset}"
        )
    variant = config.model.block_variant
    streams = any(PARTS[part].stream for part in BLOCKS[variant])
    if train.param_policy == "backbone_frozen" and not (streams or has_memories(config)):
        empty = "" if config.cms.levels else " with no cms.levels"
        yield (
            f"train.param_policy=backbone_frozen: model.block_variant={variant}{empty} has no memories, so "
            "nothing would be trained; use all"
        )
    schedule = config.teach.schedule
    if schedule.decay_start and not schedule.decay_duration:
        yield (
            f"teach.schedule.decay_start={schedule.decay_start} needs decay_duration, the steps that "
            "the decay takes; set it to 1 or more"
        )
    if optim.warmup_steps + optim.cooldown_steps > train.steps:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} and optim.cooldown_steps={optim.cooldown_steps} "
            f"together are more than train.steps={train.steps}"
        )
    if optim.cooldown_steps and optim.schedule == "cosine":
        yield "optim.cooldown_steps has no place in optim.schedule=cosine; set it to 0 or use constant"


def _accumulate_problems(config: ExperimentConfig) -> Iterator[str]:
    """Of what is one over the rows of a batch, and would be another over each part of them."""
    if config.train.accumulate == 1:
        return
    head = f"train.accumulate={config.train.accumulate}"
    if config.memory.scope == "batch":
        yield (
            f"{head} needs memory.scope=example, not batch: rows that are read one after the other cannot "
            "write one memory together; use train.accumulate=1, and train.remat=layers for want of memory"
        )
    if config.teach.normalize == "batch_mean":
        yield (
            f"{head} needs teach.normalize=token, not batch_mean: the mean would be over a part of the rows; "
            "use train.accumulate=1, and train.remat=layers for want of memory"
        )


def _mixture_problems(config: ExperimentConfig) -> Iterator[str]:
    weights = config.data.mixture
    total = math.fsum(weights.values())
    if weights and abs(total - 1) > _WEIGHTS_APART:
        listed = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
        yield (
            f"data.mixture: the weights {listed} sum to {total:.9g}, not to 1; change them, or divide each "
            "by the sum"
        )


def _batch_problems(config: ExperimentConfig, device_count: int | None) -> Iterator[str]:
    batch, dim, parts = config.data.batch_size, config.model.dim, config.train.accumulate
    devices = device_count or 1
    if batch % devices == 0 and batch // devices % parts:
        rows = f", {batch // devices} rows on each of {devices} devices" if device_count else ""
        yield (
            f"train.accumulate={parts} does not divide data.batch_size={batch}{rows}; use "
            f"train.accumulate={math.gcd(parts, batch // devices)}, or another data.batch_size"
        )
    if device_count is None:
        return
    if batch % device_count:
        fits = batch - batch % device_count or device_count
        yield (
            f"data.batch_size={batch} is not divisible by the {device_count} devices, of which each has the "
            f"same number of rows; use {fits}"
        )
    if config.train.fsdp and dim % device_count:
        yield (
            f"train.fsdp=True: model.dim={dim} is not divisible by the {device_count} devices, so the "
            "matrices cannot be split over them; set it to False"
        )
