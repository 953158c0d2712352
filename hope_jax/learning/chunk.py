"""One chunk of a stream: write what is unwritten, read, take the teach signal. The one body of all modes.

A stream is read in online chunks of N tokens. A chunk is read with what the chunks before it wrote; its teach
signal is the cotangent of its own loss, and its write runs at the start of the next chunk. Training,
evaluation, memorization, streaming and generation call `step`; they differ in what they differentiate
(`learning.modes`) and in who cuts the stream into chunks (`learning.stream`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, Batch, PyTree
from hope_jax.kernels.xent_teach import CrossEntropy, cross_entropy
from hope_jax.learning import teach
from hope_jax.learning.teach import Teach
from hope_jax.memory.period_write import settled
from hope_jax.memory.state import WriteSignal, WriteStats, add_stats, zero_stats
from hope_jax.models.lm import EMBED, Carry, Fast, HopeModel, ReadOutput


class OnlineRule(NamedTuple):
    """chunk_size: N tokens. truncate: K tokens, a multiple of N. teach: how signals are made.

    training: reads and writes as the style does while it trains (the reference bounds its residuals).
    across: mapped axes of devices that hold other examples of the batch.
    """

    chunk_size: int
    truncate: int
    teach: Teach
    training: bool = True
    across: tuple[str, ...] = ()


class Sums(NamedTuple):
    """Over a stream and its batch, float [] each: `loss` in nats and `tokens` supervised; `teach_norm`
    and `teach_tokens`: sum of |delta_t| over layers and active tokens, and their number."""

    loss: Array
    tokens: Array
    teach_norm: Array
    teach_tokens: Array


class Unwritten(NamedTuple):
    """A chunk that has been read and not yet written. trace, signal: of each layer, see `HopeModel.write`.
    position: int32 [] or [B] of its first token in the memories' context (`HopeModel.clock`)."""

    trace: PyTree
    signal: tuple[WriteSignal, ...]
    position: Array


class State(NamedTuple):
    """What crosses chunks. carry: None where the contexts are one chunk. unwritten: None where nothing is.
    stats: of the writes so far, memory -> level -> `WriteStats` with leaves [L, B]."""

    fast: Fast
    carry: Carry | None
    unwritten: Unwritten | None
    stats: PyTree
    sums: Sums


class Stepped(NamedTuple):
    """state: after the chunk. out, losses, signal: of its read. gradient: of the chunk's summed loss, a tree
    like the parameters, if asked for."""

    state: State
    out: ReadOutput
    losses: CrossEntropy
    signal: tuple[WriteSignal, ...]
    gradient: PyTree


def begin(model: HopeModel, fast: Fast, batch_size: int, carry: Carry | None) -> State:
    """The state before the first token of streams that start with memories `fast`."""
    zero = jnp.zeros((), jnp.promote_types(model.spec.dtype, jnp.float32))
    shape = (model.spec.num_layers, batch_size)
    stats = {
        name: {level: jax.tree.map(lambda t: jnp.broadcast_to(t, shape), zero_stats()) for level in levels}
        for name, levels in model.level_names().items()
    }
    return State(fast, carry, None, stats, Sums(zero, zero, zero, zero))


@jax.named_scope("head")
def read_loss(params: PyTree, out: ReadOutput, targets: Array) -> CrossEntropy:
    """The cross-entropy of each position's target, int [B, n]; its `total` is differentiated."""
    return cross_entropy(out.hidden, params[EMBED], targets)


@jax.named_scope("write")
def write(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    norms: PyTree,
    state: State,
    *,
    cut: bool = True,
    last: bool = False,
    read_follows: bool = False,
) -> State:
    """The state with its unwritten chunk written.

    params: unstacked, those that read the chunk. norms: `HopeModel.norms` of them. cut: the write is constant
    for the outer gradient, but for parameters that act through writes alone. last: the stream ends here.
    read_follows: at once, and takes what the write leaves for it.
    """
    if state.unwritten is None:
        return state
    fast, unwritten = state.fast, state.unwritten
    if cut:
        params, (norms, unwritten) = model.held_for_write(params), trees.stop_gradient((norms, unwritten))
        taught = model.memories()
        fast = tuple({**f, **trees.stop_gradient({name: f[name] for name in taught})} for f in fast)
    fast, stats = model.write(params, norms, fast, *unwritten, last=last, training=rule.training)
    fast = fast if read_follows else settled(fast)
    return state._replace(fast=fast, unwritten=None, stats=_add_stats(state.stats, stats))


def step(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    norms: PyTree,
    state: State,
    chunk: Batch,
    schedule: Array,
    *,
    cut: bool = True,
    learn: bool = False,
) -> Stepped:
    """Writes what is unwritten, reads a chunk [B, n] and takes its teach signal; its write is then unwritten.

    params, norms, cut: as of `write`. schedule: [] multiplier on the teach signal. learn: the same backward
    pass gives the gradient of the chunk's loss, with the fast state rebased on the parameters before it.
    """

    def loss(params: PyTree, taps: PyTree) -> tuple[Array, tuple[State, ReadOutput, CrossEntropy]]:
        at = state._replace(fast=model.rebase(params, state.fast)) if learn else state
        at = write(model, rule, params, norms, at, cut=cut, read_follows=True)
        fast, carry = at.fast, at.carry
        if carry is not None:
            fast, carry = model.restarted(params, fast, carry, chunk.segment_ids)
        out = model.read(params, fast, carry, chunk.tokens, chunk.segment_ids, taps, training=rule.training)
        losses = read_loss(params, out, chunk.targets)
        return losses.total, (at, out, losses)

    chex.assert_rank(list(chunk), 2)
    chex.assert_equal_shape(list(chunk))
    chex.assert_type(list(chunk), int)
    taps = model.init_taps(*chunk.tokens.shape)
    over = jax.value_and_grad(loss, argnums=(0, 1) if learn else 1, has_aux=True)
    (_, (at, out, losses)), found = over(params, taps)
    gradient, raw = found if learn else (None, found)
    metric = model.spec.memory.surprise_metric
    signal = teach.process(rule.teach, raw, losses, schedule, metric, rule.across)
    unwritten = None
    if model.memories():
        clock = jnp.zeros((), jnp.int32) if at.carry is None else model.clock(at.carry, chunk.segment_ids)
        unwritten = Unwritten(out.trace, signal, clock)
        unwritten = trees.stop_gradient(unwritten) if cut else unwritten
    stats = trees.stop_gradient(_add_stats(at.stats, out.stats))
    sums = trees.add(at.sums, _sums_of(losses, signal))
    return Stepped(State(out.fast, out.carry, unwritten, stats, sums), out, losses, signal, gradient)


def finish(
    model: HopeModel, rule: OnlineRule, params: PyTree, norms: PyTree, state: State, *, last: bool = True
) -> State:
    """Writes the last chunk and drops the carry. last: partial periods are flushed or dropped too."""
    return write(model, rule, params, norms, state, last=last)._replace(carry=None)


def whole_chunks(batch: Batch, size: int) -> Batch:
    """Cuts leaves [B, T] into chunks [m, B, size], and leaves out a shorter last one."""
    count = batch.tokens.shape[1] // size
    return jax.tree.map(lambda t: t[:, : count * size].reshape(t.shape[0], count, size).swapaxes(0, 1), batch)


Carried = TypeVar("Carried")


def over_chunks(
    body: Callable[[Carried, Batch], Carried], carried: Carried, batch: Batch, size: int, *, first: bool
) -> Carried:
    """`carried` after `body` of every chunk of `size` tokens in order, the last perhaps shorter.

    first: nothing is unwritten before the first chunk, which therefore stands before the loop.
    """
    count, rest = divmod(batch.tokens.shape[1], size)
    chunks = whole_chunks(batch, size)
    done = int(first and count > 0)
    if done:
        carried = body(carried, jax.tree.map(lambda t: t[0], chunks))
    if count > done:
        after = jax.tree.map(lambda t: t[done:], chunks)
        carried, _ = jax.lax.scan(lambda carried, chunk: (body(carried, chunk), None), carried, after)
    if rest:
        carried = body(carried, jax.tree.map(lambda t: t[:, count * size :], batch))
    return carried


def stream_loss(model: HopeModel, rule: OnlineRule, params: PyTree, fast: Fast, batch: Batch) -> State:
    """Reads and writes the batch's streams without an outer gradient, with the teach schedule at 1."""
    params = model.unstacked(params)
    norms, one = model.norms(params), jnp.ones(())
    state = begin(model, fast, len(batch.tokens), model.init_carry(*batch.tokens.shape))
    over = partial(step, model, rule, params, norms)
    state = over_chunks(
        lambda state, chunk: over(state, chunk, one).state,
        state,
        batch,
        rule.chunk_size,
        first=bool(model.memories()),
    )
    return finish(model, rule, params, norms, state)


def _sums_of(losses: CrossEntropy, signal: tuple[WriteSignal, ...]) -> Sums:
    """The sums of one chunk, of which the loss alone is differentiated."""
    norm = sum(trees.safe_norm(layer.block, axis=-1).sum() for layer in signal)
    counted = losses.supervised_bt.sum(), norm, sum(layer.active_n.sum() for layer in signal)
    constants = (jax.lax.stop_gradient(jnp.asarray(t)).astype(losses.total.dtype) for t in counted)
    return Sums(losses.total, *constants)


def _add_stats(total: PyTree, new: PyTree) -> PyTree:
    """Adds the statistics of the memories in `new` to those in `total`."""
    old = {name: total[name] for name in new}
    return {**total, **jax.tree.map(add_stats, old, new, is_leaf=lambda tree: isinstance(tree, WriteStats))}
