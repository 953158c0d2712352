"""Self-modifying Titans token by token (Eqs. 83-93). One context, one layer.

A memory is a dict: `w_in` [h, D], `w_out` [out, h] and perhaps `w_skip` [out, D]:
M(x) = skip(x) + W_out gelu(W_in x), skip being W_skip, or the identity where widths allow.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from parity_tests.torch_reference.layers import Params, convolve, gelu, linear, unit, wide
from parity_tests.torch_reference.settings import SelfMod
from parity_tests.torch_reference.trees import tree_map

Memories = dict[str, Params]


@dataclass(frozen=True)
class Token:
    """What one token writes with. k, v: [D]. eta, alpha: []."""

    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class SelfModState:
    """Fast state: the memories as whole weights, and their momentum buffers."""

    weights: Memories
    momentum: Memories


@dataclass(frozen=True)
class SelfModCarry:
    """What crosses calls besides: tokens read so far, the convolution's inputs [D] and their documents, and
    the tokens of the unfinished chunks of the generators and of M_memory."""

    seen: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    generators: list[Token] = field(default_factory=list)
    memory: list[Token] = field(default_factory=list)


def fresh(rule: SelfMod, p: dict) -> SelfModState:
    """The state of a context that has written nothing: the meta parameters themselves."""
    q, alpha = ["q"] if rule.adaptive_q else [], ["alpha"] if rule.use_alpha else []
    weights = {name: dict(p[name]) for name in ["k", "v", *q, "eta", *alpha, "memory"]}
    return SelfModState(weights, tree_map(torch.zeros_like, weights))


def rebase(p: dict, state: SelfModState) -> SelfModState:
    """The same values, cut off from what wrote them; theta stays trainable:
    stopgrad(state) + (theta - stopgrad(theta))."""
    weights = {
        name: {w: now.detach() + (p[name][w] - p[name][w].detach()) for w, now in memory.items()}
        for name, memory in state.weights.items()
    }
    return SelfModState(weights, tree_map(Tensor.detach, state.momentum))


def recall(memory: Params, x: Tensor) -> Tensor:
    """M(x) for one token x [D], in at least float32."""
    out = wide(linear(gelu(linear(x, memory["w_in"].T)), memory["w_out"].T))
    if "w_skip" in memory:
        return out + wide(linear(x, memory["w_skip"].T))
    return out + wide(x) if out.shape == x.shape else out


def inner_gradient(rule: SelfMod, start: Params, token: Token) -> Params:
    """Gradient of the inner loss at the chunk's first weights: |M(k) - v'|^2, or -<M(k), v'>, v' = M(v).

    With stopgrad_vhat the target is a constant of the inner gradient; a derivative of the written weights
    goes through it all the same, so it is computed outside the loss.
    """
    constant = recall(start, token.v)

    def loss(memory: Params) -> Tensor:
        target = constant if rule.stopgrad_vhat else recall(memory, token.v)
        if rule.objective == "l2":
            return ((recall(memory, token.k) - target) ** 2).sum()
        return -(recall(memory, token.k) * target).sum()

    return torch.func.grad(loss)(start)


def write(rule: SelfMod, start: Params, momentum: Params, tokens: list[Token]) -> tuple[Params, Params]:
    """One memory after a chunk, token by token: W <- W (alpha I - eta k k^T) - eta m, m <- beta m + gradient.

    W_out, whose input is not the keys' space, only decays by alpha.
    """
    now = start
    for token in tokens:
        gradient = inner_gradient(rule, start, token)
        momentum = {name: rule.momentum * momentum[name] + g for name, g in gradient.items()}
        k = token.k.to(token.eta.dtype)
        retain = token.alpha * torch.eye(len(k), dtype=k.dtype)
        if rule.rank1:
            retain = retain - token.eta * torch.outer(k, k)
        now = {
            name: (token.alpha * w if name == "w_out" else w @ retain) - token.eta * momentum[name]
            for name, w in now.items()
        }
    return now, momentum


def write_all(rule: SelfMod, state: SelfModState, names: list[str], tokens: list[Token]) -> SelfModState:
    """The state with the named memories written."""
    weights, momentum = dict(state.weights), dict(state.momentum)
    for name in names:
        weights[name], momentum[name] = write(rule, state.weights[name], state.momentum[name], tokens)
    return SelfModState(weights, momentum)


def generate(rule: SelfMod, p: dict, w: Memories, x: Tensor) -> tuple[Tensor, Token]:
    """The query of one token, and what it writes with."""
    q = recall(w["q"], x) if rule.adaptive_q else wide(linear(x, p["w_q"]))
    k, v = recall(w["k"], x), recall(w["v"], x)
    if rule.qk_norm:
        q, k = unit(q), unit(k)
    eta = rule.eta_scale * torch.nn.functional.softplus(recall(w["eta"], x)[0])
    alpha = torch.ones_like(eta)
    if rule.use_alpha:
        alpha = torch.sigmoid(recall(w["alpha"], x)[0] + p.get("b_alpha", 0.0))
    return q.to(x.dtype), Token(k.to(x.dtype), v.to(x.dtype), eta, alpha)


def read(
    rule: SelfMod, p: dict, state: SelfModState, carry: SelfModCarry, x_nd: Tensor, segments: list[int]
) -> tuple[Tensor, SelfModState, SelfModCarry]:
    """Outputs M_memory(q_t) [n, D]; the memories are written at the ends of their chunks, on the absolute
    positions of the context."""
    outs = []
    for x, segment in zip(x_nd, segments, strict=True):
        inputs, documents = [*carry.inputs, x], [*carry.segments, segment]
        carry = replace(carry, seen=carry.seen + 1, inputs=inputs, segments=documents)
        if "conv" in p:
            x = convolve(p["conv"], inputs, documents)
        q, token = generate(rule, p, state.weights, x)
        outs.append(recall(state.weights["memory"], q).to(x.dtype))
        carry = replace(carry, generators=[*carry.generators, token], memory=[*carry.memory, token])
        if carry.seen % rule.chunk == 0:
            names = [name for name in state.weights if name != "memory"]
            state = write_all(rule, state, names, carry.generators)
            carry = replace(carry, generators=[])
        if carry.seen % rule.chunk_memory == 0:
            state = write_all(rule, state, ["memory"], carry.memory)
            carry = replace(carry, memory=[])
    return torch.stack(outs), state, carry
