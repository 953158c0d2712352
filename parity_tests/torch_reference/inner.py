"""Inner optimizers and bounds (SPEC §2.5): from a period's gradient to the change of a level's weights."""

import torch
from torch import Tensor

from parity_tests.torch_reference.layers import Params, length
from parity_tests.torch_reference.settings import Level

GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))
"""A matrix and its bias are one affine map and are bounded as one."""

Moments = dict[str, Params]
"""`v`: first moments by weight; `s`: second moments."""


def no_moments(level: Level, weights: Params) -> Moments:
    """Zeros."""
    kinds = {"sgd": (), "preconditioned": ("v", "s"), "muon": ("v", "s")}.get(level.optimizer, ("v",))
    return {kind: {name: torch.zeros_like(w) for name, w in weights.items()} for kind in kinds}


def without_context(g: Tensor, context: Tensor, eps: float) -> Tensor:
    """g [in, out] less its component along the context [in]; g itself if the context is zero."""
    size = length(context)
    if size == 0:
        return g
    e = context / (size + eps)
    return g - torch.outer(e, e @ g)


def raw_update(level: Level, name: str, g: Tensor, s: Tensor | None, context: Tensor) -> Tensor:
    """The update of one weight before the first moment. s: its second moment, this gradient included."""
    if level.optimizer == "preconditioned":
        return g / (torch.sqrt(s) + level.eps)
    if level.optimizer == "muon":
        return torch.tanh(g / (torch.sqrt(s) + level.eps))
    if level.optimizer == "dmgd":
        return torch.tanh(g)
    if level.optimizer == "l2_objective":
        return g + 0.1 * g.mean(0, keepdim=True)
    if level.optimizer == "nl_l2_precond" and name == "w_up" and level.period > 1:
        return without_context(g, context, level.eps)
    return g


def inner_step(level: Level, grads: Params, moments: Moments, context: Tensor) -> tuple[Params, Moments]:
    """Updates u and new moments: s <- beta2 s + (1 - beta2) g^2, v <- beta v + (1 - beta) u_0, u = v, without
    bias correction. context: [D] the period's mean LN(x)."""
    new: Moments = {kind: {} for kind in moments}
    updates: Params = {}
    for name, g in grads.items():
        s = None
        if "s" in moments:
            s = new["s"][name] = level.beta2 * moments["s"][name] + (1 - level.beta2) * g**2
        u = raw_update(level, name, g, s, context)
        if "v" in moments:
            u = new["v"][name] = level.beta * moments["v"][name] + (1 - level.beta) * u
        updates[name] = u
    return updates, new


def group_norm(weights: Params, group: tuple[str, ...]) -> Tensor:
    """Frobenius norm of a matrix and its bias together."""
    return length(torch.cat([weights[name].reshape(-1) for name in group if name in weights]))


def bounded(weights: Params, slow: Params, limit: float) -> tuple[Params, int]:
    """Each group scaled down to at most limit * |theta|_F (limit 0: as it is), and how many were."""
    weights, hits = dict(weights), 0
    for group in GROUPS if limit else ():
        size, allowed = group_norm(weights, group), limit * group_norm(slow, group)
        if size > allowed:
            hits += 1
            weights.update({name: weights[name] * (allowed / size) for name in group if name in weights})
    return weights, hits
