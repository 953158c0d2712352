"""The online loop: read a chunk, take its teach signal, write it; with outer gradients.

    for each chunk: write the chunk before it; read; signal

Modes differ in what is constant. `online`: the write of chunk c - 1 is redone at the start of chunk c with
everything it reads held but the parameters that act through writes alone, so its result carries their
first-order gradient and no other; and every K tokens what crosses chunks besides (attention's cache,
convolution history, self-modifying memories and their unfinished chunks) is held too. `through_writes`:
nothing is.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from parity_tests.torch_reference import model, nested, periods, self_mod, teach, titan
from parity_tests.torch_reference.model import ByLayer
from parity_tests.torch_reference.periods import Write
from parity_tests.torch_reference.settings import Arch, Rules
from parity_tests.torch_reference.trees import detach, gradient, tree_map


@dataclass(frozen=True)
class Example:
    """One context. tokens; targets (negative: none); segments: document numbers."""

    tokens: list[int]
    targets: list[int]
    segments: list[int]

    def part(self, start: int, stop: int) -> "Example":
        """Its tokens [start, stop)."""
        return Example(self.tokens[start:stop], self.targets[start:stop], self.segments[start:stop])


@dataclass(frozen=True)
class Pending:
    """A chunk that has been read and not yet written. inputs: by layer, level -> [n, D]. signals: by layer,
    tap -> Signal. position: of its first token."""

    inputs: list[dict[str, Tensor]]
    signals: list[dict[str, periods.Signal]]
    position: int


@dataclass
class Stream:
    """What a stream leaves. loss: [] summed. logits: a tensor [n, V] a chunk. writes: in order."""

    loss: Any = 0.0
    logits: list[Tensor] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    fast: ByLayer = field(default_factory=list)


def write_chunk(
    params: dict, arch: Arch, rules: Rules, fast: ByLayer, pending: Pending, *, last: bool = False
) -> tuple[ByLayer, list[Write]]:
    """Every layer's and level's writes of one chunk."""
    after, writes = [], []
    for layer, p in enumerate(model.layer_params(params)):
        state, inputs, signals = dict(fast[layer]), pending.inputs[layer], pending.signals[layer]
        where = {"position": pending.position, "layer": layer, "last": last}
        if not rules.own_output:
            signals = dict.fromkeys(inputs, signals["block"])
        for memory, level in model.taught_levels(arch):
            name = level.name
            if memory == "cms" and arch.connection == "nested":
                continue
            kind, slow = (
                (periods.CMS, p["cms"][name]) if memory == "cms" else (periods.titan_kind(arch), p["titan"])
            )
            new, made = periods.write_level(
                state[memory][name],
                level,
                kind,
                slow,
                inputs[name],
                signals[name],
                rules,
                arch.read_clip,
                **where,
            )
            state[memory] = {**state[memory], name: new}
            writes += made
        if arch.connection == "nested":
            state["cms"], made = nested.write_chunk(
                state["cms"], arch.levels, p["cms"], inputs, signals, rules, arch.read_clip, **where
            )
            writes += made
        after.append(state)
    return after, writes


def hold_for_write(params: dict) -> dict:
    """The parameters as a write of mode `online` sees them: constants but for those that act through writes
    alone."""
    held = detach(params)
    if "titan" in params["blocks"]:
        live = {name: p for name, p in params["blocks"]["titan"].items() if name in titan.WRITE_ONLY}
        held["blocks"]["titan"] |= live
    return held


def hold_written(fast: ByLayer) -> ByLayer:
    """The state that a write of mode `online` starts from: what teach signals have written is constant."""
    return [{name: s if name == "self_mod" else detach(s) for name, s in layer.items()} for layer in fast]


def cut(params: dict, fast: ByLayer, carry: ByLayer) -> tuple[ByLayer, ByLayer]:
    """Fast state and carry with the past constant; theta stays trainable where reads use it."""
    after = []
    for p, layer in zip(model.layer_params(params), fast, strict=True):
        state = dict(layer)
        if "self_mod" in state:
            state["self_mod"] = self_mod.rebase(p["self_mod"], state["self_mod"])
        after.append(state)
    return after, detach(carry)


def stream(
    params: dict, arch: Arch, rules: Rules, example: Example, *, through_writes: bool = False
) -> Stream:
    """Reads and writes a context from fresh memories. `out.loss` is differentiable in `params`."""
    fast, carry = model.fresh_fast(params, arch), model.fresh_carry(params)
    pending: Pending | None = None
    out = Stream()
    for start in range(0, len(example.tokens), rules.chunk):
        if not through_writes and start % (rules.truncate or rules.chunk) == 0:
            fast, carry = cut(params, fast, carry)
        if pending is not None:
            if through_writes:
                fast, writes = write_chunk(params, arch, rules, fast, pending)
            else:
                held = hold_written(fast), detach(pending)
                fast, writes = write_chunk(hold_for_write(params), arch, rules, *held)
            out.writes += writes
        chunk = example.part(start, start + rules.chunk)
        taps = model.zero_taps(params, arch, len(chunk.tokens))
        read = model.read(params, arch, fast, carry, chunk.tokens, chunk.segments, taps)
        losses = model.token_losses(read.logits, chunk.targets)
        raw = teach.raw_signals(read, losses.sum(), taps, rules, differentiable=through_writes)
        signals = [teach.process(rules, layer, read, losses, chunk.targets) for layer in raw]
        pending = Pending(read.inputs, signals, start)
        fast, carry = read.fast, read.carry
        out.loss = out.loss + losses.sum()
        out.logits.append(read.logits.detach())
    fast, writes = write_chunk(detach(params), arch, rules, detach(fast), detach(pending), last=True)
    out.writes += writes
    out.fast = fast
    return out


def outer_gradient(
    params: dict, arch: Arch, rules: Rules, example: Example, *, through_writes: bool = False
) -> tuple[dict, Stream]:
    """d (summed cross-entropy) / d params as the mode cuts it, and the stream."""
    leaves = tree_map(lambda leaf: leaf.detach().requires_grad_(), params)
    out = stream(leaves, arch, rules, example, through_writes=through_writes)
    return gradient(out.loss, leaves), out


def whole_sequence(rules: Rules, example: Example) -> Rules:
    """`two_pass`: the sequence is one chunk. Its read is differentiated; its writes use the read's theta."""
    return Rules(**{**rules.__dict__, "chunk": len(example.tokens), "truncate": 0})
