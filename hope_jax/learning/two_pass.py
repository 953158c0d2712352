"""Mode `two_pass`: read the whole sequence, take the outer gradient and the teach signal, write afterwards.

The sequence is one chunk (N = T). The caller steps the meta parameters between the two passes; the write
uses those that read, and its deltas are then read with the stepped ones.
"""

from typing import Any, NamedTuple

import jax

from hope_jax import trees
from hope_jax.learning import teach
from hope_jax.learning.loss import read_loss
from hope_jax.learning.online import OnlineRule, PendingWrite, StreamResult, sums_of
from hope_jax.models import tapping
from hope_jax.models.lm import HopeModel
from hope_jax.types import Array, Batch, PyTree


class ReadPass(NamedTuple):
    """gradient: of the sum of cross-entropies. pending: the write to come.

    result: the fast state with what memories wrote while they read, the statistics of those, and the sums.
    """

    gradient: PyTree
    pending: PendingWrite
    result: StreamResult


def read_pass(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    fast: PyTree,
    batch: Batch,
    schedule: Array,
    position: Array,
) -> ReadPass:
    """The outer gradient, differentiated through the memories that write while they read; the write to come.

    fast: what is read; memories that teach signals write may be left out where they have written nothing.
    batch: [B, T]. position: int32 [] tokens that the memories' context has seen before this sequence.
    """

    def loss(plain: PyTree, gradient_taps: tapping.Taps, taps: Any) -> tuple[Array, Any]:
        tapped = tapping.attach(params, plain, gradient_taps)
        start = model.rebase(tapped, fast)
        out = model.read(tapped, start, None, batch.tokens, batch.segment_ids, taps, training=rule.training)
        losses = read_loss(model, tapped, out, batch.targets)
        return losses.total, (out, losses)

    taps = model.init_taps(*batch.tokens.shape)
    gradient_taps = model.init_gradient_taps(params, *batch.tokens.shape, memories_only=True)
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    plain = tapping.without(params, gradient_taps)
    (by_plain, factors, raw), (out, losses) = grad(plain, gradient_taps, taps)
    one_chunk = jax.tree.map(lambda t: t[None], factors)
    gradient = tapping.gradient(params, by_plain, one_chunk, batch.tokens[None], None)
    signal = teach.process(rule.teach, raw, losses, schedule)
    written = trees.stop_gradient(StreamResult(out.fast, out.stats, sums_of(losses, signal)))
    trace = trees.stop_gradient(model.recorded(out.trace, factors))
    return ReadPass(gradient, PendingWrite(trace, signal, position), written)
