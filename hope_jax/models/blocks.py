"""The block variants: tables of what a block is made of, in order. A batch of contexts; `lm` adds depth.

A part of a block mixes tokens or reads a memory, and is called with the batch; a memory's mathematics is
written for one example, and mapped here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.memory import cms, gated_deltanet, self_mod, titan
from hope_jax.memory.cms import Cms
from hope_jax.memory.cms_nested import NestedCms
from hope_jax.memory.flops import Flops, matrices
from hope_jax.memory.gated_deltanet import GatedDeltaNet
from hope_jax.memory.initial import ArrayKinds, Entries
from hope_jax.memory.norms import norm
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.state import AnyMemory, Memory, StreamMemory, WriteStats
from hope_jax.memory.titan import Titan
from hope_jax.models import attention, documents, layers
from hope_jax.models.attention import Cache, ReadContext, init_cache
from hope_jax.models.spec import EXAMPLES, READ_CLIP, ModelSpec

ATTENTION, MLP, SWIGLU = "attn", "mlp", "swiglu"
CMS, TITAN, TITAN_NORM, SELF_MOD, GATED_DELTANET = "cms", "titan", "titan_norm", "self_mod", "gated_deltanet"

CONNECTIONS: Mapping[str, Callable[..., Cms]] = {
    "sequential": Cms,
    "independent": partial(Cms, mixed=True),
    "nested": NestedCms,
}
"""How the levels of a CMS are connected, by `cms.connection`."""


class Call(NamedTuple):
    """What a block is called with. fast: memory name -> fast state of this layer, leaves [B, ...] ({}: slow
    weights alone). cache: what the layer carries besides, by name; None: the contexts begin and end with this
    call. taps: memory name -> level -> `Taps`, leaves [B, n, ...]."""

    fast: dict[str, PyTree]
    cache: dict[str, PyTree] | None
    taps: dict[str, Any]
    context: ReadContext


class BlockRead(NamedTuple):
    """What a block, or a part of it, leaves of one call: its output [B, n, D], and by name what it carries
    (of `Call.cache`), what writes need, what memories have written while they read, and those writes'
    statistics by level."""

    x: Array
    cache: dict[str, PyTree]
    trace: dict[str, PyTree]
    written: dict[str, PyTree]
    stats: dict[str, dict[str, WriteStats]]


class BlockPart(NamedTuple):
    """A part of a block: a layer, or a memory. entries: its parameters in the block's scope, beside a
    memory's own, which are below the part's name. read: of a layer, of (spec, the block's parameters, x
    [B, n, D], call), what it leaves. memory: of (spec, training), the memory that it is; None where the spec
    asks for none. stream: it writes while it reads, and no teach signal does. residual: what a memory reads
    is added to x. flops: useful operations; a memory knows its own. out_in: its matrices lie as [out, in];
    all others as [in, out]. arrays: what a memory's parameters are exported as."""

    entries: Callable[[ModelSpec], Entries] = lambda _: {}
    read: Callable[[ModelSpec, PyTree, Array, Call], BlockRead] = lambda _spec, _params, x, _call: _only(x)
    memory: Callable[[ModelSpec, bool], AnyMemory | None] | None = None
    stream: bool = False
    residual: Callable[[ModelSpec], bool] = lambda _: True
    flops: Callable[[ModelSpec, int, int, int], list[Flops]] | None = None
    out_in: bool = False
    arrays: ArrayKinds = ()


def entries(spec: ModelSpec) -> Entries:
    """The parameters of a block."""
    own, found = memories(spec), dict[str, Any]()
    for name in BLOCKS[spec.block_variant]:
        below = {name: own[name].entries(spec.initial)} if name in own else {}
        found |= {**PARTS[name].entries(spec), **below}
    return found


def read(spec: ModelSpec, training: bool, params: PyTree, x_bnd: Array, call: Call) -> BlockRead:
    """Reads n tokens [B, n, D] with the parts of a block, one after the other.

    params: the block's. training: as the style does while it trains (the reference bounds its residuals).
    """
    left, own = _only(x_bnd), memories(spec, training=training)
    for name in BLOCKS[spec.block_variant]:
        part = PARTS[name]
        with jax.named_scope(name):
            if name in own:
                one = _streamed if part.stream else _taught
                z = norm(params, left.x, f"{name}_")
                found = one(name, own[name], params[name], spec, z, call)
                found = found._replace(x=left.x + found.x) if part.residual(spec) else found
            else:
                found = part.read(spec, params, left.x, call)
        left = BlockRead(found.x, *({**a, **b} for a, b in zip(left[1:], found[1:], strict=True)))
    return left


def memories(spec: ModelSpec, *, training: bool = False, stream: bool | None = None) -> dict[str, Any]:
    """The memories of a block under the names of their parameters. stream: those alone that write while they
    read, or that teach signals write; None: both."""
    parts = {name: PARTS[name] for name in BLOCKS[spec.block_variant] if stream in (None, PARTS[name].stream)}
    made = {name: part.memory(spec, training) for name, part in parts.items() if part.memory}
    return {name: memory for name, memory in made.items() if memory}


def init_layer_cache(spec: ModelSpec, batch_size: int, capacity: int) -> dict[str, PyTree]:
    """What one layer carries besides fast state, before the first of `capacity` tokens of each context."""
    one = {name: memory.init_carry(spec.dtype) for name, memory in memories(spec, stream=True).items()}
    own = jax.tree.map(lambda t: jnp.broadcast_to(t, (batch_size, *t.shape)), one)
    attends = ATTENTION in BLOCKS[spec.block_variant]
    return {**own, **({ATTENTION: init_cache(spec, batch_size, capacity)} if attends else {})}


def flops(spec: ModelSpec, tokens: int, cut: int, chunk: int) -> list[Flops]:
    """Useful operations of a token in a block, of each stretch in order; lengths as of `attention.flops`."""
    own, found = memories(spec), list[Flops]()
    for name in BLOCKS[spec.block_variant]:
        count = PARTS[name].flops
        found += count(spec, tokens, cut, chunk) if count else own[name].flops(tokens) if name in own else []
    return found


def forget(examples_b: Array, cache: dict[str, PyTree]) -> dict[str, PyTree]:
    """What a layer carries, emptied for the examples where `examples_b` (bool [B]) is True; attention's keys
    and values stay."""
    empty = trees.zeros_like(cache)
    if ATTENTION in cache:
        held: Cache = cache[ATTENTION]
        empty[ATTENTION] = held._replace(conv=empty[ATTENTION].conv)
    return documents.select(examples_b, empty, cache)


def _only(x: Array) -> BlockRead:
    """The result of a part that leaves nothing but its output."""
    return BlockRead(x, {}, {}, {}, {})


def _attention(spec: ModelSpec, params: PyTree, x: Array, call: Call) -> BlockRead:
    cache = None if call.cache is None else call.cache[ATTENTION]
    y, cache = attention.read(spec, params[ATTENTION], x, call.context, cache)
    return _only(y)._replace(cache={} if cache is None else {ATTENTION: cache})


def _mlp(*, gated: bool) -> BlockPart:
    return BlockPart(
        lambda s: {MLP: layers.mlp_entries(s, gated)},
        lambda s, params, x, _: _only(layers.mlp(params[MLP], s, x)),
        flops=lambda s, *_: [matrices((6.0 if gated else 4.0) * s.dim * layers.mlp_hidden(s, gated))],
    )


def _taught(name: str, memory: Memory, params: PyTree, spec: ModelSpec, x: Array, call: Call) -> BlockRead:
    """Reads a memory that teach signals write."""
    over = jax.vmap(memory.read, (None, spec.fast_axis, 0, 0), axis_name=EXAMPLES)
    y, trace = over(params, call.fast.get(name), x, call.taps.get(name, {}))
    return _only(y)._replace(trace={name: trace})


def _taught_by(spec: ModelSpec, training: bool) -> dict[str, Any]:
    """The options that all memories share which teach signals write."""
    return {
        "dim": spec.dim,
        "rules": WriteRules(spec.chunk_size, spec.memory, spec.cms.flush_partial_at_end, spec.dtype),
        "own_output": spec.own_output,
        "output_clip": None if spec.modern or not training else READ_CLIP,
        "activation": spec.activation,
    }


def _make_cms(spec: ModelSpec, training: bool) -> Cms | None:
    """The CMS of a spec; None without levels, when it is the identity."""
    if not spec.cms.levels:
        return None
    return CONNECTIONS[spec.cms.connection](
        levels=spec.cms.levels,
        hidden=spec.cms.hidden_multiplier * spec.dim,
        layer_norm=spec.cms.norm == "layer",
        **_taught_by(spec, training),
    )


def _make_titan(spec: ModelSpec, training: bool) -> Titan:
    return Titan(
        level=spec.titan.level,
        hidden=spec.titan.hidden_multiplier * spec.dim,
        self_modifier=spec.titan.self_modifier,
        **_taught_by(spec, training),
    )


def _streamed(
    name: str, memory: StreamMemory, params: PyTree, spec: ModelSpec, z: Array, call: Call
) -> BlockRead:
    """Reads a memory that writes while it reads."""
    context, window = call.context, memory.conv_window
    carry = None if call.cache is None else call.cache[name]
    segments = context.segments_with(window - 1) if window else None
    position = context.position if context.clock is None else context.clock

    axis, at = spec.fast_axis, 0 if position.ndim else None
    one, axes = partial(memory.read, reduce=spec.reduce), (None, axis, 0, 0, at, 0, 0)
    over = jax.vmap(one, axes, (0, axis, 0, 0), axis_name=EXAMPLES)
    y, written, carry, stats = over(
        params, call.fast.get(name), carry, z, position, context.segments_bn > 0, segments
    )
    wrote = written is not None
    return BlockRead(
        y,
        {} if carry is None else {name: carry},
        {},
        {name: written} if wrote else {},
        {name: stats} if wrote else {},
    )


PARTS: Mapping[str, BlockPart] = {
    ATTENTION: BlockPart(lambda s: {ATTENTION: attention.entries(s)}, _attention, flops=attention.flops),
    MLP: _mlp(gated=False),
    SWIGLU: _mlp(gated=True),
    CMS: BlockPart(memory=_make_cms, residual=lambda _: False, arrays=cms.ARRAYS),
    TITAN: BlockPart(
        # The reference style reads x itself.
        lambda s: layers.norm_entries(s, "titan_") if s.modern else {},
        memory=_make_titan,
        arrays=titan.ARRAYS,
    ),
    TITAN_NORM: BlockPart(
        # The reference style norms the sum of attention and TITAN memory where nothing comes after it.
        lambda s: {} if s.modern else layers.norm_entries(s),
        lambda _, params, x, __: _only(norm(params, x, "norm_")),
    ),
    SELF_MOD: BlockPart(
        # Vectors of norm 1, as the keys are: with norm sqrt(D) the memories' own targets feed back and
        # the writes diverge within a few hundred tokens.
        lambda s: layers.norm_entries(s, "self_mod_", start=s.dim**-0.5) if s.modern else {},
        memory=lambda s, _: s.self_mod,
        stream=True,
        # The reference style has no residual around them: x reaches their output only through q.
        residual=lambda s: s.modern,
        out_in=True,
        arrays=self_mod.ARRAYS,
    ),
    GATED_DELTANET: BlockPart(
        lambda s: layers.norm_entries(s, "gated_deltanet_"),
        memory=lambda s, _: GatedDeltaNet(s.dim, s.heads),
        stream=True,
        arrays=gated_deltanet.ARRAYS,
    ),
}

BLOCKS: Mapping[str, tuple[str, ...]] = {
    "transformer": (ATTENTION, MLP),
    "transformer_pp": (ATTENTION, SWIGLU),
    "hope_attention": (ATTENTION, CMS),
    "hope_selfmod": (SELF_MOD, CMS),
    "hope_hybrid": (ATTENTION, TITAN, CMS),
    "titan": (ATTENTION, TITAN, TITAN_NORM),
    "gated_deltanet": (GATED_DELTANET, SWIGLU),
}
"""What a block of each variant is made of, by the name that a configuration uses: the baselines without
memories, plain and strong; the CMS in the MLP's place (HOPE-attention); self-modifying Titans, then CMS
(HOPE); the published pilot's block; the TITAN baseline; Gated DeltaNet, the
linear recurrent baseline."""

MEMORIES = tuple(name for name, part in PARTS.items() if part.memory)
"""Names below "blocks" whose parameters are memories; everything else is the backbone."""

OUT_IN = tuple(name for name, part in PARTS.items() if part.out_in)
"""Names below which matrices lie as [out, in]."""
