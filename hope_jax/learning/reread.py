"""Does a write help what it was written from? Each chunk's loss before its write, and read again after it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.learning import teach
from hope_jax.learning.loss import read_loss
from hope_jax.learning.online import OnlineRule
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.types import Array, Batch, PyTree


class Reread(NamedTuple):
    """For each chunk and example [M, B]: summed cross-entropy at the memories that read it, the same at the
    memories that it wrote, and by level, bool, whether it was written in any layer.

    surprise: [M, L, B, N] of each token, NaN where a token does not count.
    """

    before: Array
    after: Array
    written: dict[str, Array]
    surprise: Array


def reread(model: HopeModel, rule: OnlineRule, params: PyTree, batch: Batch) -> Reread:
    """Streams the batch from empty memories, reading every chunk a second time after its write.

    batch: [B, T]; tokens after the last whole chunk are left out. The attention cache is the same in both
    readings. Of a period that spans chunks, the last chunk is read again.
    """
    rule = rule._replace(training=False)
    size = batch.tokens.shape[0]

    def chunk_loss(fast: PyTree, carry: Carry, chunk: Batch, taps: Any) -> tuple[Array, Any]:
        out = model.read(params, fast, carry, chunk.tokens, chunk.segment_ids, taps)
        losses = read_loss(model, params, out, chunk.targets)
        return losses.total, (losses, out)

    def body(state: tuple[PyTree, Carry], chunk: Batch) -> tuple[tuple[PyTree, Carry], Reread]:
        fast, carry = model.restarted(params, *state, chunk.segment_ids)
        taps = model.init_taps(*chunk.tokens.shape)
        raw, (before, out) = jax.grad(chunk_loss, argnums=3, has_aux=True)(fast, carry, chunk, taps)
        signal = teach.process(rule.teach, raw, before, jnp.ones(()))
        clock = model.clock(carry, chunk.segment_ids)
        fast, stats = model.write(params, fast, out.trace, signal, clock)
        written = {
            name: level.updates_applied.sum(0) > 0
            for levels in stats.values()
            for name, level in levels.items()
        }
        _, (after, _) = chunk_loss(fast, carry, chunk, None)
        surprise = jnp.where(signal.counted_n, signal.surprise_n, jnp.nan)
        found = Reread(before.loss_bt.sum(-1), after.loss_bt.sum(-1), written, surprise)
        return (fast, trees.stop_gradient(out.carry)), found

    def cut(t: Array) -> Array:
        whole = t.shape[1] // rule.chunk_size * rule.chunk_size
        return t[:, :whole].reshape(size, -1, rule.chunk_size).swapaxes(0, 1)

    start = (model.init_fast_state(params, size), model.init_carry(size, batch.tokens.shape[1]))
    return jax.lax.scan(body, start, jax.tree.map(cut, batch))[1]
