"""A level's periods on the absolute token positions: what one gathers, the gate, the write at its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parity_tests.torch_reference import cms, inner, titan
from parity_tests.torch_reference.cms import affine, fast_part, with_delta
from parity_tests.torch_reference.layers import Params, gelu
from parity_tests.torch_reference.settings import Arch, Level, Rules
from parity_tests.torch_reference.trees import tree_map


class Kind(NamedTuple):
    """What a write needs to know of a memory. objective(p, x, teach, clip): a function of the fast weights.
    inputs(p, x): what W_up meets."""

    objective: Callable[[Any, Tensor, Tensor, float], Callable[[Params], Tensor]]
    inputs: Callable[[Any, Tensor], Tensor]


CMS = Kind(cms.objective, cms.normed)


def titan_kind(arch: Arch) -> Kind:
    """The TITAN memory, whose keys are its inputs."""
    return Kind(partial(titan.objective, correction_clip=arch.correction_clip), lambda p, x: x)


@dataclass(frozen=True)
class Gathered:
    """What an unfinished period holds: summed gradient and summed input of W_up [D]; its tokens, those of
    them that take part in the write, and those that its surprise is averaged over; the sum of that surprise.
    steps: the tokens one by one, for the Titans rule."""

    grads: Params
    context: Tensor
    steps: tuple[titan.Step, ...] = ()
    tokens: int = 0
    active: int = 0
    counted: int = 0
    surprise: float = 0.0


@dataclass(frozen=True)
class LevelState:
    """Fast state of one level, or of the TITAN memory: what has been added to its weights, moments, the
    unfinished period."""

    delta: Params
    moments: inner.Moments
    gathered: Gathered


@dataclass(frozen=True)
class Signal:
    """What one chunk teaches one level. teach: [n, D]. active, counted: bool by token. surprise: by token."""

    teach: Tensor
    active: list[bool]
    counted: list[bool]
    surprise: list[float]

    def part(self, start: int, stop: int) -> "Signal":
        """Of the tokens [start, stop)."""
        fields = (self.teach, self.active, self.counted, self.surprise)
        return Signal(*(value[start:stop] for value in fields))


@dataclass(frozen=True)
class Write:
    """A period that came to its end. tokens: that took part. flushed: at the end of the stream, unfinished.
    grad_norm: of an applied write, the sum over weights of the gradient's norm."""

    layer: int
    level: str
    tokens: int
    surprise: float
    is_open: bool
    applied: bool
    flushed: bool
    grad_norm: float
    write_clip_hits: int = 0
    delta_clip_hits: int = 0


def nothing_gathered(p: Params) -> Gathered:
    """An empty period."""
    zeros = tree_map(torch.zeros_like, fast_part(p))
    return Gathered(zeros, torch.zeros_like(p["ln_scale"]))


def fresh(level: Level, p: Params) -> LevelState:
    """The state of a level that has written nothing."""
    zeros = tree_map(torch.zeros_like, fast_part(p))
    return LevelState(zeros, inner.no_moments(level, zeros), nothing_gathered(p))


def pieces(position: int, tokens: int, period: int) -> list[tuple[int, int]]:
    """The chunk's tokens [0, n), cut behind every token whose absolute count is a multiple of the period."""
    ends = [t + 1 for t in range(tokens) if (position + t + 1) % period == 0]
    bounds = [0, *ends] if ends and ends[-1] == tokens else [0, *ends, tokens]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def write_gradient(level: Level, kind: Kind, p: Params, x: Tensor, teach: Tensor, clip: float) -> Params:
    """Gradient of the objective over tokens [n, D] in the fast weights, at the weights p that read them."""
    fast = fast_part(p)
    if level.optimizer != "dgd":
        return torch.func.grad(kind.objective(p, x, teach, clip))(fast)
    total = {name: torch.zeros_like(w) for name, w in fast.items()}
    for t in range(len(x)):
        for name, step in delta_descent(level, kind, p, x[t : t + 1], teach[t : t + 1], clip).items():
            total[name] = total[name] + step
    return total


def delta_descent(level: Level, kind: Kind, p: Params, x: Tensor, teach: Tensor, clip: float) -> Params:
    """`inner.drawn` for both affine maps of one token [1, D]. The loss's gradient at a map's output is that
    of its bias, and of a bias of zero where there is none."""
    fast = fast_part(p)
    nothing = {b: torch.zeros_like(p[w][0]) for w, b in inner.GROUPS}
    g = torch.func.grad(kind.objective(p, x, teach, clip))({**nothing, **fast})
    z = kind.inputs(p, x)
    steps: Params = {}
    for (w, b), entering in zip(inner.GROUPS, (z, gelu(affine(z, p, "w_up", "b_up"))), strict=True):
        matrix, column = inner.drawn(level, entering[0], p[w], p.get(b), g[b])
        steps |= {w: matrix, b: column} if b in p else {w: matrix}
    return steps


def gather(
    now: Gathered, level: Level, kind: Kind, p: Params, x: Tensor, signal: Signal, rules: Rules, clip: float
) -> Gathered:
    """The period with a few more tokens. p: the weights that read them. x: [n, D] the memory's inputs."""
    mask = list(signal.active)
    if rules.metric == "l2" and rules.threshold is not None:
        mask = [on and s >= rules.threshold for on, s in zip(mask, signal.surprise, strict=True)]
    on = [t for t, active in enumerate(mask) if active]
    grads, steps = now.grads, list(now.steps)
    if level.optimizer == "titans":
        for t in on:
            gradient = write_gradient(level, kind, p, x[t : t + 1], signal.teach[t : t + 1], clip)
            steps.append(titan.Step(gradient, *titan.gates(p["gates"], x[t], level.lr)))
    elif on:
        more = write_gradient(level, kind, p, x[on], signal.teach[on], clip)
        grads = {name: g + more[name] for name, g in grads.items()}
    counted = [s for s, counts in zip(signal.surprise, signal.counted, strict=True) if counts]
    return Gathered(
        grads=grads,
        context=now.context + kind.inputs(p, x).to(now.context.dtype).sum(0),
        steps=tuple(steps),
        tokens=now.tokens + len(mask),
        active=now.active + len(on),
        counted=now.counted + len(counted),
        surprise=now.surprise + sum(counted),
    )


def close(
    state: LevelState, level: Level, p: Params, rules: Rules, layer: int, flushed: bool = False
) -> tuple[LevelState, Write]:
    """theta <- theta - eta u, bounded, with what the period has gathered, if the gate opens and a token is
    left. p: slow weights. The period is empty afterwards either way."""
    period = state.gathered
    surprise = period.surprise / period.counted if period.counted else 0.0
    is_open = rules.threshold is None or surprise >= rules.threshold
    applied = is_open and period.active > 0
    write = Write(layer, level.name, period.active, surprise, is_open, applied, flushed, 0.0)
    state = replace(state, gathered=nothing_gathered(p))
    if not applied:
        return state, write
    if level.optimizer == "titans":
        step, size, moments = titans_step(state, p, period)
    else:
        u, moments = inner.inner_step(level, period.grads, state.moments, period.context / period.tokens)
        step, size = {name: -level.lr * u[name] for name in u}, period.grads
    step, write_hits = inner.bounded(step, p, rules.write_clip)
    delta = {name: state.delta[name] + step[name] for name in step}
    delta, delta_hits = inner.bounded(delta, p, rules.delta_clip)
    norm = float(sum(torch.linalg.norm(g.detach()) for g in size.values()))
    write = replace(write, grad_norm=norm, write_clip_hits=write_hits, delta_clip_hits=delta_hits)
    return replace(state, delta=delta, moments=moments), write


def titans_step(state: LevelState, p: Params, period: Gathered) -> tuple[Params, Params, inner.Moments]:
    """The change of the memory over a period under the Titans rule; what its gradients alone contribute (of
    which the statistics take the norm); the new S."""
    start = with_delta(fast_part(p), state.delta)
    memory, momentum = titan.titans_rule(start, state.moments["v"], list(period.steps))
    zeros = tree_map(torch.zeros_like, start)
    alone, _ = titan.titans_rule(zeros, zeros, list(period.steps))
    return {name: memory[name] - w for name, w in start.items()}, alone, {"v": momentum}


def write_level(
    state: LevelState,
    level: Level,
    kind: Kind,
    p: Params,
    x: Tensor,
    signal: Signal,
    rules: Rules,
    clip: float,
    *,
    position: int,
    layer: int,
    last: bool,
) -> tuple[LevelState, list[Write]]:
    """One chunk's writes of one memory, in token order, every gradient at the weights that read the chunk.

    x: [n, D] as the read pass recorded it, its first token at `position`. last: the stream ends here.
    """
    read_with, writes = with_delta(p, state.delta), []
    for start, stop in pieces(position, len(x), level.period):
        part = signal.part(start, stop)
        state = replace(
            state, gathered=gather(state.gathered, level, kind, read_with, x[start:stop], part, rules, clip)
        )
        if (position + stop) % level.period == 0:
            state, write = close(state, level, p, rules, layer)
            writes.append(write)
    if last:
        state, more = end_of_stream(state, level, p, rules, layer)
        writes += more
    return state, writes


def end_of_stream(
    state: LevelState, level: Level, p: Params, rules: Rules, layer: int
) -> tuple[LevelState, list[Write]]:
    """The unfinished period written or dropped."""
    if state.gathered.tokens and rules.flush:
        state, write = close(state, level, p, rules, layer, flushed=True)
        return state, [write]
    return replace(state, gathered=nothing_gathered(p)), []
