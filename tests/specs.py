"""Architectures of two small layers, for tests of whole models."""

from collections.abc import Mapping
from typing import Any

from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.memory.titan import TitanOptions
from hope_jax.models.spec import ModelSpec

VOCAB, TITAN = 11, Level(8, 0.2)


def small_spec(
    variant: str,
    chunk: int,
    levels: Mapping[str, Level],
    *,
    titan: Level = TITAN,
    own: tuple[int, int] = (4, 8),
    own_options: Mapping[str, Any] | None = None,
    cms: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    **values: Any,
) -> ModelSpec:
    """own: chunk sizes of self-modifying Titans. values: of `ModelSpec`."""
    sizes = {"vocab_size": VOCAB, "dim": 8, "num_layers": 2, "heads": 2, "mlp_multiplier": 2}
    return ModelSpec(
        block_variant=variant,  # type: ignore[arg-type]
        chunk_size=chunk,
        cms=CmsOptions(FrozenMapping(levels), hidden_multiplier=2, **(cms or {})),
        titan=TitanOptions(titan, hidden_multiplier=2),
        self_modifying_titans=SelfModifyingTitans(
            chunk_size=own[0],
            chunk_size_memory=own[1],
            **{"local_conv_window": 0, "alpha_init": "near_one", **(own_options or {})},
        ),
        memory=MemoryOptions(**(memory or {})),
        **{**sizes, **values},
    )
