"""Production form: tokens in blocks, each block's logits made once and used for everything.

A block of C tokens holds one [C, V] array: its logits, and in their place the errors p - onehot, from which
follow, with p = softmax(h W^T):

    loss_t = logsumexp(h_t W^T) - h_t W[y_t]        dL/dh = (p - onehot) W        dL/dW = (p - onehot)^T h

dL/dh at the final norm's output is the teach signal at the head. The loss is a sum, so its
cotangent is one number by which the pass's results are multiplied: the backward pass makes no logits again.
Three products with the head in all, as many as autodiff takes; which of them are made follows from what is
differentiated (the head's gradient is not where only the teach signal is wanted).

Blocks are cut over time and hold all examples: a batch that is split over devices stays split.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

BLOCK_LOGITS = 2**25
"""Logits that a block holds at most (128 MiB in float32), if that is a token or more of each example."""


class CrossEntropy(NamedTuple):
    """total: [] summed cross-entropy in nats of the supervised tokens, what is differentiated.

    Constants under differentiation, for gates, statistics and sums: loss_bt [B, T] of each token, 0 where
    there is no target; entropy_bt [B, T] of each prediction, in nats; supervised_bt: bool [B, T].
    """

    total: jax.Array
    loss_bt: jax.Array
    entropy_bt: jax.Array
    supervised_bt: jax.Array


def logits_of(hidden: jax.Array, head_vd: jax.Array) -> jax.Array:
    """hidden [..., D] @ head [V, D]^T: [..., V], computed in hidden's dtype, in float32 at least.

    The loss and the teach signal are differences of logits: these are not rounded to the compute dtype.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    logits = _product("rd,vd->rv", rows, head_vd.astype(hidden.dtype))
    return logits.reshape(*hidden.shape[:-1], -1)


def cross_entropy(
    hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array, block_logits: int = BLOCK_LOGITS
) -> CrossEntropy:
    """Cross-entropy of each position's target under softmax(hidden @ head^T).

    hidden: [B, T, D] in the compute dtype. head: [V, D]. targets: int [B, T], negative: none. Sums, softmax
    and accumulation in float32 at least; products take their operands in the compute dtype. Can be
    differentiated (in reverse) any number of times with respect to hidden and head; all but the first
    derivative makes each block's logits again instead of keeping them. block_logits: as `BLOCK_LOGITS`.
    """
    chex.assert_rank([hidden_btd, head_vd, targets_bt], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden_btd, targets_bt], 2)
    batch, tokens = targets_bt.shape
    longest = max(1, block_logits // (head_vd.shape[0] * batch))
    blocks = -(-tokens // longest)
    found = _cross_entropy(-(-tokens // blocks), hidden_btd, head_vd, targets_bt)
    return CrossEntropy(*found, targets_bt >= 0)


_Sums = tuple[jax.Array, jax.Array | None]
"""[] summed loss; its derivative by the head [V, D], or None."""

_Each = tuple[jax.Array, jax.Array, jax.Array | None]
"""Of each token: loss and entropy [B, C]; the derivative of the summed loss by hidden [B, C, D], or None."""


def _block(
    signal: bool, by_head: bool, hidden_bcd: jax.Array, head_vd: jax.Array, targets_bc: jax.Array
) -> tuple[_Sums, _Each]:
    """One block from its logits, with the cotangents that are asked for, in float32 at least."""
    rows, targets_r = hidden_bcd.reshape(-1, hidden_bcd.shape[-1]), targets_bc.reshape(-1)
    supervised_r = targets_r >= 0
    logits_rv = logits_of(rows, head_vd)
    normaliser_r = jax.nn.logsumexp(logits_rv, axis=-1)
    chosen_r = jnp.take_along_axis(logits_rv, jnp.where(supervised_r, targets_r, 0)[:, None], axis=-1)[:, 0]
    loss_r = jnp.where(supervised_r, normaliser_r - chosen_r, 0)
    # Without a target: p = exp(logits - infinity) = 0, and no hit, so no error; cheaper than a mask [R, V].
    bound_r = jnp.where(supervised_r, normaliser_r, jnp.inf)
    hit_rv = targets_r[:, None] == jnp.arange(head_vd.shape[0])
    error_rv = (jnp.exp(logits_rv - bound_r[:, None]) - hit_rv).astype(rows.dtype)
    log_p_rv = logits_rv - normaliser_r[:, None]
    entropy_r = -(jnp.exp(log_p_rv) * log_p_rv).sum(-1)
    loss, entropy = (jax.lax.stop_gradient(t).reshape(targets_bc.shape) for t in (loss_r, entropy_r))
    to_head = _product("rv,rd->vd", error_rv, rows) if by_head else None
    to_hidden = _product("rv,vd->rd", error_rv, head_vd).reshape(hidden_bcd.shape) if signal else None
    return (loss_r.sum(), to_head), (loss, entropy, to_hidden)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=wide)


_Found = tuple[jax.Array, jax.Array, jax.Array]
"""(total, loss_bt, entropy_bt)."""


def _pass(
    size: int,
    hidden_btd: jax.Array,
    head_vd: jax.Array,
    targets_bt: jax.Array,
    *,
    signal: bool = False,
    by_head: bool = False,
) -> tuple[_Found, tuple[jax.Array | None, jax.Array | None]]:
    """Runs all blocks in order. Returns, beside what is found, the derivatives of the total by hidden and
    head, in their dtypes, where they are asked for."""
    weights = head_vd.astype(hidden_btd.dtype)
    block = jax.checkpoint(partial(_block, signal, by_head))
    over = block if size == targets_bt.shape[1] else partial(_over_blocks, block, size)
    (total, to_head), (loss, entropy, to_hidden) = over(hidden_btd, weights, targets_bt)
    to_hidden = None if to_hidden is None else to_hidden.astype(hidden_btd.dtype)
    return (total, loss, entropy), (to_hidden, None if to_head is None else to_head.astype(head_vd.dtype))


def _over_blocks(
    block: Callable[..., tuple[_Sums, _Each]],
    size: int,
    hidden_btd: jax.Array,
    head_vd: jax.Array,
    targets_bt: jax.Array,
) -> tuple[_Sums, _Each]:
    """Blocks of `size` tokens of each example; the last is filled up with tokens without target."""
    batch, tokens = targets_bt.shape
    blocks = -(-tokens // size)

    def cut(t: jax.Array, fill: int) -> jax.Array:
        rest = [(0, 0), (0, blocks * size - tokens), *[(0, 0)] * (t.ndim - 2)]
        padded = jnp.pad(t, rest, constant_values=fill)
        return jnp.moveaxis(padded.reshape(batch, blocks, size, *t.shape[2:]), 1, 0)

    def join(t: jax.Array) -> jax.Array:
        return jnp.moveaxis(t, 0, 1).reshape(batch, blocks * size, *t.shape[3:])[:, :tokens]

    def body(sums: _Sums, part: tuple[jax.Array, jax.Array]) -> tuple[_Sums, _Each]:
        more, each = block(part[0], head_vd, part[1])
        return jax.tree.map(jnp.add, sums, more), each

    hidden, targets = cut(hidden_btd, 0), cut(targets_bt, -1)
    like, _ = jax.eval_shape(block, hidden[0], head_vd, targets[0])
    zero = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), like)
    sums, each = jax.lax.scan(body, zero, (hidden, targets))
    return sums, jax.tree.map(join, each)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(size: int, hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array) -> _Found:
    """The pass in blocks of `size` tokens of every example."""
    return _pass(size, hidden_btd, head_vd, targets_bt)[0]


def _forward(size: int, hidden: Any, head: Any, targets: Any) -> tuple[_Found, Any]:
    """Runs the pass with the cotangents that are asked for, which each argument's `perturbed` says."""
    wanted = {"signal": hidden.perturbed, "by_head": head.perturbed}
    return _pass(size, hidden.value, head.value, targets.value, **wanted)


def _backward(_: int, kept: Any, cotangents: Any) -> tuple[Any, Any, None]:
    by_total = cotangents[0]
    if isinstance(by_total, SymbolicZero):
        return None, None, None
    signal, by_head = jax.tree.map(lambda t: (t * by_total).astype(t.dtype), kept)
    return signal, by_head, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
