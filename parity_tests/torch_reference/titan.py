"""TITAN memory: mem(x) = LN(W_down gelu(W_up x)), and the loss that a write descends.

key = x, value = stopgrad(mem(key)), target = value + SelfModifier(key, value, delta) - delta,
loss = 1/2 sum_t |mem(key_t) - target_t|^2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parity_tests.torch_reference.cms import branch
from parity_tests.torch_reference.layers import Params, gelu, layer_norm, length, linear, wide

WRITE_ONLY = ("self_modifier", "gates")
"""Parameters that act through writes alone: no read uses them."""


@dataclass(frozen=True)
class Step:
    """One token of the Titans paper's rule: gradient, decay alpha, momentum eta, rate theta, [] each."""

    gradient: Params
    alpha: Tensor
    eta: Tensor
    theta: Tensor


def read(p: dict, x: Tensor, clip: float) -> Tensor:
    """mem(x) of [n, D]."""
    return layer_norm(branch(p, x, clip), p["ln_scale"], p["ln_bias"])


def self_modifier(p: Params, key: Tensor, value: Tensor, teach: Tensor) -> Tensor:
    """A 3-layer MLP over [key, value, delta]."""
    h = torch.cat([key, value.to(key.dtype), teach.to(key.dtype)], -1)
    for i in (1, 2, 3):
        h = linear(h, p[f"w_{i}"])
        h = h + p[f"b_{i}"].to(h.dtype) if f"b_{i}" in p else h
        h = gelu(h) if i < 3 else h
    return h


def objective(
    p: dict, key: Tensor, teach: Tensor, clip: float, correction_clip: float = 0.0
) -> Callable[[Params], Tensor]:
    """The loss as a function of the fast weights; p: the weights that read the keys [n, D].

    The target is a constant of the inner gradient alone; a derivative of what is written goes through it.
    """
    value = read(p, key, clip)
    target = wide(value) - teach
    if "self_modifier" in p:
        correction = wide(self_modifier(p["self_modifier"], key, value, teach))
        if correction_clip:
            size, allowed = length(correction), correction_clip * length(teach)
            correction = correction * torch.where(size > allowed, allowed / size, 1.0)[..., None]
        target = target + correction

    def loss(fast: Params) -> Tensor:
        return 0.5 * ((wide(read({**p, **fast}, key, clip)) - target) ** 2).sum()

    return loss


def gates(p: Params, key: Tensor, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, eta and theta of one token [D], in the parameters' dtype."""
    alpha, eta, theta = (
        key.to(p["w_alpha"].dtype) @ p[f"w_{name}"] + p[f"b_{name}"] for name in ("alpha", "eta", "theta")
    )
    return torch.sigmoid(alpha), torch.sigmoid(eta), lr * torch.nn.functional.softplus(theta)


def titans_rule(memory: Params, momentum: Params, steps: list[Step]) -> tuple[Params, Params]:
    """S <- eta S - theta g, M <- (1 - alpha) M + S, token after token (arXiv 2501.00663)."""
    for step in steps:
        momentum = {n: step.eta * s - step.theta * step.gradient[n] for n, s in momentum.items()}
        memory = {n: (1 - step.alpha) * w + momentum[n] for n, w in memory.items()}
    return memory, momentum
