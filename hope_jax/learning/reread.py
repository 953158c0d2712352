"""Does a write help what it was written from? Each chunk's loss before its write, and read again after it."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from hope_jax.core.types import Array, Batch, PyTree
from hope_jax.learning.chunk import OnlineRule, State, begin, read_loss, step, whole_chunks, write
from hope_jax.models.lm import HopeModel

Reread: TypeAlias = tuple[Array, Array, dict[str, Array], Array]
"""Of each chunk and example, [M, B]: summed cross-entropy at the memories that read it, at those that it
wrote, and by level, bool, whether it was written in any layer; [M, L, B, N] surprise of each token, NaN where
it does not count."""


def reread(model: HopeModel, rule: OnlineRule, params: PyTree, batch: Batch) -> Reread:
    """Streams the batch from empty memories, reading every chunk a second time after its write.

    batch: [B, T]; tokens after the last whole chunk are left out. The attention cache is the same in both
    readings. Of a period that spans chunks, the last chunk is read again.
    """
    rule, params = rule._replace(training=False), model.unstacked(params)
    size, norms = batch.tokens.shape[0], model.norms(params)

    def body(state: State, chunk: Batch) -> tuple[State, Reread]:
        before = step(model, rule, params, norms, state, chunk, jnp.ones(()))
        written = write(model, rule, params, norms, before.state._replace(stats=state.stats))
        assert state.carry is not None
        _, carry = model.restarted(params, written.fast, state.carry, chunk.segment_ids)
        again = model.read(params, written.fast, carry, chunk.tokens, chunk.segment_ids)
        after = read_loss(params, again, chunk.targets)
        added = {
            name: (level.updates_applied - old.updates_applied).sum(0) > 0
            for memory in model.memories()
            for (name, level), old in zip(
                written.stats[memory].items(), state.stats[memory].values(), strict=True
            )
        }
        surprise = [jnp.where(s.counted_n, s.surprise_n, jnp.nan) for s in before.signal]
        losses = before.losses.loss_bt.sum(-1), after.loss_bt.sum(-1)
        return written, (*losses, added, jnp.stack(surprise))

    carry = model.init_carry(size, batch.tokens.shape[1])
    start = begin(model, model.init_fast_state(params, size), size, carry)
    return jax.lax.scan(body, start, whole_chunks(batch, rule.chunk_size))[1]
