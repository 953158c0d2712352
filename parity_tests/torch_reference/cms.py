"""The CMS (Eqs. 70-71, SPEC §2.1): y = MLP_k(... MLP_1(x)), and the gradient that a write descends.

A level's fast weights are its matrices and their biases; LayerNorm's affine part is slow. Rows are tokens.
"""

import torch
from torch import Tensor

from parity_tests.torch_reference.layers import Params, gelu, layer_norm, length, linear, wide

FAST = ("w_up", "b_up", "w_down", "b_down")


def fast_part(p: Params) -> Params:
    """What writes change of a level's parameters."""
    return {name: p[name] for name in FAST if name in p}


def with_delta(p: Params, delta: Params) -> Params:
    """theta + delta."""
    return {name: w + delta[name] if name in delta else w for name, w in p.items()}


def normed(p: Params, x: Tensor) -> Tensor:
    """LN(x)."""
    return layer_norm(x, p["ln_scale"], p["ln_bias"])


def affine(x: Tensor, p: Params, w: str, b: str) -> Tensor:
    """x W + b; some levels have no biases."""
    y = linear(x, p[w])
    return y + p[b].to(x.dtype) if b in p else y


def level_read(p: Params, x: Tensor, clip: float) -> Tensor:
    """x + W_down act(W_up LN(x)). clip > 0: each token's branch is divided by max(norm / clip, 1), which is
    a constant for every derivative."""
    branch = affine(gelu(affine(normed(p, x), p, "w_up", "b_up")), p, "w_down", "b_down")
    if clip:
        divisor = (length(wide(branch)) / clip).clamp(min=1.0)[..., None]
        branch = branch * (1.0 / divisor).detach().to(x.dtype)
    return x + branch


def chain_read(
    levels: dict[str, Params], x: Tensor, taps: dict[str, Tensor], clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The levels one after the other, and the input of each.

    taps: level -> zeros [n, D] that are added to its output, so that their gradient is its teach signal.
    """
    inputs = {}
    for name, p in levels.items():
        inputs[name] = x
        x = level_read(p, x, clip)
        if name in taps:
            x = x + taps[name].to(x.dtype)
    return x, inputs


def write_gradient(p: Params, x: Tensor, signal: Tensor, clip: float) -> Params:
    """Gradient of sum_t <stopgrad(delta_t), y_t> in the level's fast weights, at the weights p that read x.

    x, signal: [n, D]. "stopgrad" is meant for this gradient: a derivative of what is written goes through
    the signal, through x and through p.
    """

    def objective(fast: Params) -> Tensor:
        return (wide(signal.to(x.dtype)) * wide(level_read({**p, **fast}, x, clip))).sum()

    return torch.func.grad(objective)(fast_part(p))
