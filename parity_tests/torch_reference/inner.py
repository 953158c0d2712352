"""Inner optimizers and bounds: from a period's gradient to the change of a level's weights."""

import torch
from torch import Tensor

from parity_tests.torch_reference.layers import Params, length
from parity_tests.torch_reference.settings import Level

GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))
"""A matrix and its bias are one affine map and are bounded as one."""

Moments = dict[str, Params]
"""`v`: first moments by weight (S of the Titans rule; -m / lr of delta momentum); `s`: second moments."""


def no_moments(level: Level, weights: Params) -> Moments:
    """Zeros."""
    kinds = {"sgd": (), "dgd": (), "preconditioned": ("v", "s"), "muon": ("v", "s")}.get(
        level.optimizer, ("v",)
    )
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


def drawn(level: Level, x: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> tuple[Tensor, Tensor]:
    """DGD (Eq. 57) for one token of an affine map: (W - V) / eta and the same of its bias, where
    V = W (I - eta' x x^T) - eta' g x^T for the paper's matrices [out, in], eta' = eta / (1 + eta |x|^2).

    x: [in]. w: [in, out]. b: [out], the column that meets a constant input 1, or None. g: [out] gradient of
    the loss at the output.
    """
    matrix = w.T if b is None else torch.cat([w.T, b[:, None]], 1)
    x = x if b is None else torch.cat([x, torch.ones_like(x[:1])])
    rate = level.lr / (1 + level.lr * (x @ x))
    written = matrix @ (torch.eye(len(x), dtype=x.dtype) - rate * torch.outer(x, x)) - rate * torch.outer(
        g, x
    )
    step = (matrix - written) / level.lr
    return step[:, : len(w)].T, step[:, -1]


def delta_momentum(level: Level, g: Tensor, n: Tensor) -> Tensor:
    """Eqs. 48-49 with P = I: m <- m (alpha I - g^T g) - eta g, W <- W + m, for the paper's matrices
    [out, in]; a bias is the column of a constant input. n, and what is returned, is -m / eta."""
    column = g.dim() == 1
    grad, m = (g[:, None], -level.lr * n[:, None]) if column else (g.T, -level.lr * n.T)
    forget = level.beta * torch.eye(grad.shape[1], dtype=g.dtype) - grad.T @ grad
    following = -(m @ forget - level.lr * grad) / level.lr
    return following[:, 0] if column else following.T


def inner_step(level: Level, grads: Params, moments: Moments, context: Tensor) -> tuple[Params, Moments]:
    """Updates u and new moments: s <- beta2 s + (1 - beta2) g^2, v <- beta v + (1 - beta) u_0, u = v, without
    bias correction; or delta momentum. context: [D] the period's mean input of W_up. For `dgd` the gradients
    are those of `drawn`."""
    new: Moments = {kind: {} for kind in moments}
    updates: Params = {}
    for name, g in grads.items():
        s = None
        if "s" in moments:
            s = new["s"][name] = level.beta2 * moments["s"][name] + (1 - level.beta2) * g**2
        u = raw_update(level, name, g, s, context)
        if level.optimizer == "delta_momentum":
            u = new["v"][name] = delta_momentum(level, g, moments["v"][name])
        elif "v" in moments:
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
