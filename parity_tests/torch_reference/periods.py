"""A level's periods on the absolute token positions: what one gathers, the gate, the write at its end."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity_tests.torch_reference import inner
from parity_tests.torch_reference.cms import fast_part, normed, with_delta, write_gradient
from parity_tests.torch_reference.layers import Params
from parity_tests.torch_reference.settings import Level, Rules
from parity_tests.torch_reference.trees import tree_map


@dataclass(frozen=True)
class Gathered:
    """What an unfinished period holds: summed gradient and summed LN(x) [D]; its tokens, those of them that
    take part in the write, and those that its surprise is averaged over; the sum of that surprise."""

    grads: Params
    context: Tensor
    tokens: int = 0
    active: int = 0
    counted: int = 0
    surprise: float = 0.0


@dataclass(frozen=True)
class LevelState:
    """Fast state of one level: what has been added to its weights, moments, the unfinished period."""

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


@dataclass(frozen=True)
class Write:
    """A period that came to its end. tokens: that took part. flushed: at the end of the stream, unfinished.
    grad_norm: sum over weights of the gradient's norm."""

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


def gather(now: Gathered, p: Params, x: Tensor, signal: Signal, rules: Rules, clip: float) -> Gathered:
    """The period with a few more tokens. p: the weights that read them. x: [n, D] the level's inputs."""
    mask = list(signal.active)
    if rules.metric == "l2" and rules.threshold is not None:
        mask = [on and s >= rules.threshold for on, s in zip(mask, signal.surprise, strict=True)]
    teach = torch.where(torch.tensor(mask)[:, None], signal.teach, 0.0)
    grads = write_gradient(p, x, teach, clip)
    counted = [s for s, on in zip(signal.surprise, signal.counted, strict=True) if on]
    return Gathered(
        grads={name: g + grads[name] for name, g in now.grads.items()},
        context=now.context + normed(p, x).to(now.context.dtype).sum(0),
        tokens=now.tokens + len(mask),
        active=now.active + sum(mask),
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
    size = float(sum(torch.linalg.norm(g.detach()) for g in period.grads.values()))
    write = Write(layer, level.name, period.active, surprise, is_open, applied, flushed, size)
    state = replace(state, gathered=nothing_gathered(p))
    if not applied:
        return state, write
    u, moments = inner.inner_step(level, period.grads, state.moments, period.context / period.tokens)
    step, write_hits = inner.bounded({name: -level.lr * u[name] for name in u}, p, rules.write_clip)
    delta = {name: state.delta[name] + step[name] for name in step}
    delta, delta_hits = inner.bounded(delta, p, rules.delta_clip)
    write = replace(write, write_clip_hits=write_hits, delta_clip_hits=delta_hits)
    return replace(state, delta=delta, moments=moments), write


def write_level(
    state: LevelState,
    level: Level,
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
    """One chunk's writes of one level, in token order, every gradient at the weights that read the chunk.

    x: [n, D] as the read pass recorded it, its first token at `position`. last: the stream ends here.
    """
    read_with, writes = with_delta(p, state.delta), []
    for start, stop in pieces(position, len(x), level.period):
        part = Signal(
            signal.teach[start:stop],
            signal.active[start:stop],
            signal.counted[start:stop],
            signal.surprise[start:stop],
        )
        state = replace(state, gathered=gather(state.gathered, read_with, x[start:stop], part, rules, clip))
        if (position + stop) % level.period == 0:
            state, write = close(state, level, p, rules, layer)
            writes.append(write)
    if last and state.gathered.tokens:
        if rules.flush:
            state, write = close(state, level, p, rules, layer, flushed=True)
            writes.append(write)
        state = replace(state, gathered=nothing_gathered(p))
    return state, writes
