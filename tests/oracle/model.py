"""The model: blocks of attention and a CMS (or an MLP), and what its head makes of each token.

Parameter trees are production's (matrices [in, out], every leaf of `blocks` with a leading layer axis).
`deltas[layer][level][name]` is what has been written; a missing entry means zero.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tests.oracle import cms
from tests.oracle.layers import Arch, Carry, attend, mlp, norm

Tree = Any
Deltas = Any


class Read(NamedTuple):
    """All that a read of n tokens shows: logits [n, V], the last hidden states [n, D], and by layer the
    inputs and outputs of levels, the block's output, and attention's carry after it."""

    logits: Any
    pre_norm: Any
    level_in: list[dict[str, Any]]
    level_out: list[dict[str, Any]]
    block_out: list[Any]
    carry: list[Carry]


def blocks_of(params: Tree) -> list[Tree]:
    """Parameters of each block."""
    count = len(params["blocks"]["attn"]["w_q"])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(count)]


def read(
    params: Tree,
    arch: Arch,
    tokens: Any,
    documents: Any = None,
    deltas: Deltas = None,
    carry: list[Carry] | None = None,
    taps: Any = None,
) -> Read:
    """Read tokens [n] after those of `carry`. documents: of all tokens so far, these too; None: one.

    taps[layer] maps each level's name, and "block", to zeros [n, D] that are added to that level's output and
    to the block's output: their gradients are the teach signals.
    """
    before = len(carry[0].keys) if carry else 0
    documents = jnp.ones(before + len(tokens)) if documents is None else jnp.asarray(documents)
    shown: Any = ([], [], [], [])
    y = params["embed"][jnp.asarray(tokens)]
    for layer, p in enumerate(blocks_of(params)):
        tap = taps[layer] if taps else {}
        y, after = attend(p["attn"], arch, y, carry[layer] if carry else None, documents)
        if "mlp" in p:
            y = y + mlp(p["mlp"], norm(arch, y, p["mlp"]["norm_scale"], p["mlp"].get("norm_bias")), arch.act)
        y, ins, outs = cms.read(p.get("cms"), arch, y, deltas[layer] if deltas else {}, tap)
        y = y + tap.get("block", 0.0)
        for kept, new in zip(shown, (ins, outs, y, after), strict=True):
            kept.append(new)
    final = params["final_norm"]
    logits = norm(arch, y, final["scale"], final.get("bias")) @ params["embed"].T
    return Read(logits, y, *shown)


def predict(logits: Any, target: Any) -> tuple[Any, Any]:
    """Of each token, in nats: -log softmax(logits)[target] (0 for a negative target, which is none), and the
    prediction's entropy."""
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_p = shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    hit = jnp.arange(logits.shape[-1]) == jnp.asarray(target)[..., None]
    return -jnp.sum(jnp.where(hit, log_p, 0.0), axis=-1), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def cross_entropy(logits: Any, targets: Any) -> Any:
    """The loss of each token."""
    return predict(logits, targets)[0]


def head_signal(logits: Any, target: Any, embed: Any) -> Any:
    """d loss / d (vector that enters the head) of one token: (softmax - onehot) @ embed."""
    signal = jax.nn.softmax(logits) @ embed - embed[jnp.maximum(target, 0)]
    return jnp.where(target >= 0, signal, 0.0)
