"""Tokens that are read, written and trained together: what a configuration's chunks and periods come to."""

import dataclasses
import math

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.memory.levels import Level
from hope_jax.models import blocks

_MIN_CHUNK = 16
_SELFMOD_CUT = 256


def online_chunk(config: ExperimentConfig) -> int:
    """N, the tokens that one loss pass reads before its writes.

    The sequence in `two_pass`, and for models without memories unless a chunk size is set.
    """
    chunk = config.train.online_chunk_size
    if config.train.algorithm_mode == "two_pass":
        return config.data.seq_len
    if chunk:
        return chunk
    if not has_memories(config):
        return config.data.seq_len
    taught = [level.update_period for _, level in levels_of(config)]
    cms = [level.update_period for _, level in cms_levels_of(config)]
    return max(_MIN_CHUNK, min(cms or taught, default=_MIN_CHUNK))


def stream_chunk(config: ExperimentConfig) -> int:
    """N of a stream at inference: that of training, but for two cases where it would only make each new
    token dear, as the unfinished chunk is read again for it.

    Models without memories write nothing at a chunk's end: at most 16. Under `two_pass` with memories that
    live for a context: that of `online` (train.online_chunk_size, or its default), if the periods allow it.
    """
    chunk = online_chunk(config)
    if not has_memories(config):
        return min(chunk, _MIN_CHUNK)
    if config.train.algorithm_mode != "two_pass" or config.memory.lifetime == "persistent":
        return chunk
    train = dataclasses.replace(config.train, algorithm_mode="online")
    shorter = online_chunk(dataclasses.replace(config, train=train))
    allowed = all(fits(shorter, period) for period in periods_of(config).values())
    return shorter if allowed else chunk


def truncate(config: ExperimentConfig) -> int:
    """K, the tokens after which outer gradients are cut; a multiple of N."""
    chunk = online_chunk(config)
    if config.train.algorithm_mode == "two_pass":
        return chunk
    if config.train.truncate_tokens:
        return config.train.truncate_tokens
    if not has_part(config, blocks.SELF_MOD):
        return chunk
    return chunk * math.ceil(max(_SELFMOD_CUT, shortest_selfmod_cut(config)) / chunk)


def document_multiple(config: ExperimentConfig) -> int:
    """Tokens of which every document is padded to a multiple; 1: documents follow each other."""
    return online_chunk(config) if config.memory.reset_at_document else 1


def shortest_selfmod_cut(config: ExperimentConfig) -> int:
    """Below two periods of M_memory its generators would receive no gradient."""
    return 2 * config.self_modifying_titans.chunk_size_memory


def has_part(config: ExperimentConfig, part: str) -> bool:
    """Whether the variant's block has a part, by its name in `models.blocks`."""
    return part in blocks.BLOCKS[config.model.block_variant]


def levels_of(config: ExperimentConfig) -> list[tuple[str, Level]]:
    """The variant's memories that are written by teach signals, by key."""
    titan = [("titan.level", config.titan.level)] if has_part(config, blocks.TITAN) else []
    return [*titan, *cms_levels_of(config)]


def cms_levels_of(config: ExperimentConfig) -> list[tuple[str, Level]]:
    """The CMS levels of the variant, by key, in the order of the chain."""
    levels = config.cms.levels if has_part(config, blocks.CMS) else {}
    return [(f"cms.levels.{name}", level) for name, level in levels.items()]


def periods_of(config: ExperimentConfig) -> dict[str, int]:
    """Tokens between writes of each of the variant's memories, by key."""
    periods = {f"{name}.update_period": level.update_period for name, level in levels_of(config)}
    if has_part(config, blocks.SELF_MOD):
        own = config.self_modifying_titans
        periods["self_modifying_titans.chunk_size"] = own.chunk_size
        periods["self_modifying_titans.chunk_size_memory"] = own.chunk_size_memory
    return periods


def has_memories(config: ExperimentConfig) -> bool:
    """Whether the model has any that are written every so many tokens; `hope_attention` without CMS levels
    has none, like the transformers."""
    return bool(periods_of(config))


def fits(chunk: int, period: int) -> bool:
    """Whether one divides the other."""
    return chunk % period == 0 or period % chunk == 0
