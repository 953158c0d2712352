"""Replays whole models (`model_*`): logits, block outputs and loss, evaluating and training."""

from typing import Any

import jax.numpy as jnp

from hope_jax.core.types import NO_TARGET
from hope_jax.learning.chunk import read_loss
from hope_jax.models.lm import HopeModel
from parity_tests.golden_file import Golden
from parity_tests.quick import quick_jit
from parity_tests.reference_style import model_of, offered

EQUAL = 1e-10
"""How near the cached pieces must come to the whole, as recorded."""


def next_tokens(tokens: Any) -> Any:
    """Targets [B, T] of a model's own next tokens."""
    return jnp.concatenate([tokens[:, 1:], jnp.full((len(tokens), 1), NO_TARGET)], axis=1)


def replay(g: Golden) -> None:
    """Both modes of a plain read, and the read in two pieces with a cache."""
    config = g.config["model"]
    if not offered(config):
        g.leave_rest("not_offered")
        return
    model, params = model_of(config, g.weights)
    tokens = jnp.asarray(g.inputs["tokens"], jnp.int32)
    read = quick_jit(model.read, static_argnames="training")
    for mode in ("eval", "train"):
        out = read(params, {}, None, tokens, jnp.ones_like(tokens), training=mode == "train")
        g.compare(f"{mode}.logits", model.logits(params, out.hidden))
        g.compare(f"{mode}.pre_norm", out.block_out[-1])
        for i in range(config["num_layers"]):
            g.compare(f"{mode}.block_out.{i}", out.block_out[i])
        losses = read_loss(params, out, next_tokens(tokens))
        g.compare(f"{mode}.loss", losses.total / losses.supervised_bt.sum())
    if "cached_equals_full" in g.outputs:
        logits = in_pieces(model, params, tokens, -(-tokens.shape[1] // 2))
        gap = jnp.abs(logits - g.outputs["eval.logits"]).max()
        g.compare("cached_equals_full", int(gap < EQUAL))


def in_pieces(model: HopeModel, params: Any, tokens: Any, size: int) -> Any:
    """Logits of tokens read `size` at a time."""
    carry, read, pieces = model.init_carry(*tokens.shape), quick_jit(model.read), []
    for start in range(0, tokens.shape[1], size):
        piece = tokens[:, start : start + size]
        out = read(params, {}, carry, piece, jnp.ones_like(piece))
        carry = out.carry
        pieces.append(model.logits(params, out.hidden))
    return jnp.concatenate(pieces, axis=1)
