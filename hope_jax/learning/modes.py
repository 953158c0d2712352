"""The training modes: which chunks are differentiated together, and what is cut.

- `online`, K = N: one backward pass a chunk gives its outer gradient and its teach signal;
- `online`, K > N: the chunks of a cut are differentiated together, and each chunk's signal, which later
  chunks do not reach into, comes from a backward pass inside;
- `through_writes`: one cut, in which the writes are differentiated too, teach signals included: second order;
- `two_pass`: the sequence is one chunk, written after it has been read.

All take (model, rule, parameters, memories to start from, batch [B, T], schedule: [] multiplier on the teach
signal) and give the outer gradient, and what the streams wrote.

Under `online` gradients through teach-driven writes are cut at every write, but for parameters that act
through writes alone; those through the attention cache, convolution histories and memories that write while
they read are cut every K tokens. All functions take and return stacked parameters and give the outer gradient
of the *sum* of cross-entropies: divide by `sums.tokens` for the mean.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from hope_jax.core import trees
from hope_jax.core.types import Array, Batch, PyTree
from hope_jax.learning.chunk import OnlineRule, State, begin, finish, over_chunks, step
from hope_jax.models import documents
from hope_jax.models.lm import Fast, HopeModel

_add = jax.named_scope("gradient_sum")(trees.add)


def online(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: Fast, batch: Batch, schedule: Array
) -> tuple[PyTree, State]:
    """See the module. A last chunk shorter than N is read and written as it is."""
    params = model.unstacked(params)
    norms = model.norms(params)

    def one_chunk(carried: tuple[State, PyTree], chunk: Batch) -> tuple[State, PyTree]:
        state, gradient = carried
        stepped = step(model, rule, params, norms, state, chunk, schedule, learn=True)
        return stepped.state, _add(gradient, stepped.gradient)

    def one_cut(carried: tuple[State, PyTree], part: Batch) -> tuple[State, PyTree]:
        state, gradient = carried
        state, more = _together(model, rule, params, norms, state, part, schedule, cut=True)
        return state, _add(gradient, more)

    length = rule.truncate
    if model.spec.memory.reset_at_document and length > rule.chunk_size:
        # Every document is cut on a grid of its own, inside.
        length = batch.tokens.shape[1]
    body = one_chunk if length == rule.chunk_size else one_cut
    state = begin(model, fast, len(batch.tokens), model.init_carry(*batch.tokens.shape))
    start, first = (state, trees.zeros_like(params)), bool(model.memories())
    state, gradient = over_chunks(body, start, batch, length, first=first)
    return model.stacked(gradient), finish(model, rule, params, norms, state)


def through_writes(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: Fast, batch: Batch, schedule: Array
) -> tuple[PyTree, State]:
    """See the module; `rule.truncate` has no part in it."""
    params = model.unstacked(params)
    state = begin(model, fast, len(batch.tokens), model.init_carry(*batch.tokens.shape))
    state, gradient = _together(model, rule, params, None, state, batch, schedule, cut=False)
    return model.stacked(gradient), finish(model, rule, params, model.norms(params), state)


def two_pass(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    fast: Fast,
    batch: Batch,
    schedule: Array,
    *,
    seen: Array | None = None,
    logged: Array | None = None,
) -> tuple[PyTree, State]:
    """See the module; differentiated through the memories that write while they read.

    seen: int32 [] tokens that a persistent memory has read before; None: contexts begin and end here.
    logged: bool [], of such contexts: True: only the statistics of their writes are wanted; False: not even
    these. None: all of what is written.
    """
    params = model.unstacked(params)
    norms, streams = model.norms(params), model.stream_memories()
    # Fresh memories have written nothing: a read of their deltas would multiply zeros.
    read_with = fast if seen is not None else tuple({name: f[name] for name in streams} for f in fast)
    state = begin(model, read_with, len(batch.tokens), None)
    read = step(model, rule, params, norms, state, batch, schedule, learn=True)
    state = read.state._replace(fast=tuple({**f, **r} for f, r in zip(fast, read.state.fast, strict=True)))
    if seen is not None and state.unwritten is not None:
        state = state._replace(unwritten=state.unwritten._replace(position=seen))
    done = partial(finish, model, rule, params, norms, last=seen is None)
    if logged is None:
        return model.stacked(read.gradient), done(state)
    with jax.named_scope("logged"):
        stats = jax.lax.cond(logged, lambda state: done(state).stats, lambda state: state.stats, state)
    return model.stacked(read.gradient), read.state._replace(unwritten=None, stats=stats)


MODES: Mapping[str, Callable[..., tuple[PyTree, State]]] = {
    "online": online,
    "through_writes": through_writes,
    "two_pass": two_pass,
}


def _together(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    norms: PyTree,
    state: State,
    batch: Batch,
    schedule: Array,
    *,
    cut: bool,
) -> tuple[State, PyTree]:
    """The state after chunks that are differentiated together, and the gradient of their loss. cut: teach
    signals are constants, and so are writes, except for parameters that act through them alone. The backward
    pass reads every chunk again from the state before it."""

    def loss(params: PyTree) -> tuple[Array, State]:
        own_norms = norms if cut else model.norms(params)

        def body(state: State, chunk: Batch) -> State:
            if cut and model.spec.memory.reset_at_document:
                state = _cut_documents(model, rule, params, state, chunk)
            return step(model, rule, params, own_norms, state, chunk, schedule, cut=cut).state

        start = state._replace(fast=model.rebase(params, state.fast))
        first = start.unwritten is None and bool(model.memories())
        end = over_chunks(jax.checkpoint(body), start, batch, rule.chunk_size, first=first)
        return end.sums.loss - state.sums.loss, end

    gradient, end = jax.grad(loss, has_aux=True)(params)
    return end, gradient


def _cut_documents(model: HopeModel, rule: OnlineRule, params: PyTree, state: State, chunk: Batch) -> State:
    """Cuts the state before `chunk` off from its past, for examples whose document is at a multiple of K."""
    carry = state.carry
    assert carry is not None
    select = partial(documents.select, model.clock(carry, chunk.segment_ids) % rule.truncate == 0)
    pairs: Any = zip(model.rebase(params, state.fast), state.fast, strict=True)
    return state._replace(
        fast=tuple(select(rebased, fast) for rebased, fast in pairs),
        carry=carry._replace(cache=select(trees.stop_gradient(carry.cache), carry.cache)),
    )
