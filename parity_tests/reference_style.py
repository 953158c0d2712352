"""Our models in the published architecture, from a recorded configuration, in double precision."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import ACTIVATIONS
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.memory.titan import SelfModifierOptions, TitanOptions
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec
from parity_tests import convert, replay_smt

DOUBLE = jnp.dtype("float64")
DELTAS = {"cms_delta": "cms.blocks.", "titan_delta": "titan_memory."}
"""What recorded deltas are added to, in a block."""


def spec_of(variant: str, dim: int, heads: int, **rest: Any) -> ModelSpec:
    """A spec of the `reference` style; values that a piece does not need have small ones."""
    small = {"vocab_size": 1, "num_layers": 1, "qk_norm": "none", "chunk_size": 4, "dtype": DOUBLE}
    return ModelSpec(
        block_variant=variant,  # type: ignore[arg-type]
        style="reference",
        dim=dim,
        heads=heads,
        **{"cms": CmsOptions(FrozenMapping()), **small, **rest},
    )


def self_mod_of(config: Mapping[str, Any]) -> SelfModifyingTitans:
    """Self-modifying Titans of a recorded model or block; what it does not name has the published default."""
    a_block = "eta_scale" in config or any(name.startswith("selfmod_") for name in config)
    prefix = "selfmod_" if a_block else "self_mod_"

    def option(name: str, default: Any) -> Any:
        return config.get(prefix + name, default)

    return SelfModifyingTitans(
        chunk_size=option("chunk_size", 1),
        chunk_size_memory=option("chunk_size_memory", None) or option("chunk_size", 1),
        eta_scale=config.get("eta_scale" if a_block else "self_mod_lr", 1e-3),
        qk_norm=config.get("qk_l2_norm", a_block),
        adaptive_q=option("adaptive_q", False),
        use_alpha=option("use_alpha", True),
        rank1_precondition=option("use_rank1_precond", True),
        projection_skip=option("use_skip", True),
        objective=option("objective", "l2"),
        stopgrad_vhat=option("stopgrad_vhat", True),
        momentum=option("momentum", 0.0),
        local_conv_window=option("local_conv_window", 4) or 0,
    )


def activation_of(config: Mapping[str, Any]) -> str:
    """The activation of a recorded model, block or layer: of the transformer's MLP, or of CMS and TITAN."""
    own = "transformer_activation" if config.get("block_variant") == "transformer" else "activation"
    return str(config.get(own, config.get("activation", "gelu"))).lower()


def offered(config: Mapping[str, Any]) -> bool:
    """Whether ours have the activation of a recorded model, block or layer."""
    return activation_of(config) in ACTIVATIONS


def block_spec(
    variant: str, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], **rest: Any
) -> ModelSpec:
    """The spec of a recorded block, or of a model of such blocks. What its weights show is taken from them:
    widths, and whether the CMS has LayerNorm."""
    levels = {c["name"]: Level(c["update_period"], 0.05) for c in config.get("cms_levels") or ()}
    titan = config.get("titan_level") or {"update_period": 8}

    def multiplier(part: str) -> int:
        found = [w.shape[0] for name, w in weights.items() if re.fullmatch(rf"{part}\.weight", name)]
        width, rest = divmod(found[0] if found else config["dim"], config["dim"])
        assert not rest, f"{part}: its hidden width is no multiple of {config['dim']}"
        return width

    normed = any(re.fullmatch(r"cms\.blocks\.[^.]+\.net\.0\.weight", name) for name in weights)
    return spec_of(
        variant,
        config["dim"],
        config.get("heads", 1),
        qk_norm="l2" if config.get("qk_l2_norm") else "none",
        local_conv_window=config.get("local_conv_window") or 0,
        activation=activation_of(config),
        mlp_multiplier=multiplier(r"mlp\.net\.0"),
        cms=CmsOptions(
            FrozenMapping(levels),
            hidden_multiplier=multiplier(r"cms\.blocks\.[^.]+\.net\.1"),
            norm="layer" if normed else "none",
        ),
        titan=TitanOptions(
            Level(titan["update_period"], 0.05),
            hidden_multiplier=multiplier(r"titan_memory\.net\.0"),
            # It acts in writes alone, and may be of another width than the memory.
            self_modifier=SelfModifierOptions(enabled=False),
        ),
        self_modifying_titans=self_mod_of(config),
        **rest,
    )


def block_params(spec: ModelSpec, weights: Mapping[str, np.ndarray]) -> Any:
    """The parameters of one block."""
    tree = convert.block(weights, lambda w: replay_smt.params_of(spec.self_mod, w))
    return jax.tree.map(jnp.asarray, tree)


def model_of(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> tuple[HopeModel, Any]:
    """The model that a recorded configuration describes, and its parameters.

    Raises:
      ValueError: no variant of ours has the recorded name.
    """
    variant = "titan" if config.get("type") == "titan" else config["block_variant"]
    if variant not in BLOCKS:
        raise ValueError(f"model.block_variant={variant!r}: want one of {', '.join(BLOCKS)}")
    shape = {"vocab_size": config["vocab_size"], "num_layers": config["num_layers"]}
    spec = block_spec(variant, config, convert.under(weights, "blocks.0"), **shape)
    tree = convert.model(weights, config["num_layers"], lambda w: replay_smt.params_of(spec.self_mod, w))
    return HopeModel(spec), jax.tree.map(jnp.asarray, tree)


def with_deltas(weights: Mapping[str, np.ndarray], deltas: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights with recorded deltas added: those of CMS levels (`cms_delta.LEVEL.*`) and of TITAN memories
    (`titan_delta.*`), of one block."""
    found = dict(weights)
    for name, delta in deltas.items():
        kind, _, rest = name.partition(".")
        if kind in DELTAS:
            found[DELTAS[kind] + rest] = found[DELTAS[kind] + rest] + delta
    return found
