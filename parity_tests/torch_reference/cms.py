"""The CMS (Eqs. 70-71 and 74): reads, and the objective that a write descends.

A level's fast weights are its matrices and their biases; LayerNorm's affine part is slow. Rows are tokens.
"""

from collections.abc import Callable

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


def branch(p: Params, z: Tensor, clip: float) -> Tensor:
    """W_down gelu(W_up z). clip > 0: each token's is divided by max(norm / clip, 1), which is a constant for
    every derivative."""
    out = affine(gelu(affine(z, p, "w_up", "b_up")), p, "w_down", "b_down")
    if clip:
        divisor = (length(wide(out)) / clip).clamp(min=1.0)[..., None]
        out = out * (1.0 / divisor).detach().to(out.dtype)
    return out


def level_read(p: Params, x: Tensor, clip: float) -> Tensor:
    """x + W_down gelu(W_up LN(x))."""
    return x + branch(p, normed(p, x), clip)


def chain_read(
    levels: dict[str, Params], x: Tensor, taps: dict[str, Tensor], clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The levels one after the other, and the input of each.

    taps: level -> zeros [n, D] that are added to its output, so that their gradient is its teach signal.
    """
    inputs = {}
    for name, p in levels.items():
        inputs[name] = x
        x = tapped(level_read(p, x, clip), taps, name)
    return x, inputs


def average_read(
    levels: dict[str, Params], mix: Tensor, x: Tensor, taps: dict[str, Tensor], clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 74: sum_l softmax(mix)_l MLP_l(x); taps stand before the average."""
    shares = torch.softmax(wide(mix), 0)
    outputs = [tapped(level_read(p, x, clip), taps, name) for name, p in levels.items()]
    y = sum(share * wide(out) for share, out in zip(shares, outputs, strict=True))
    return y.to(x.dtype), dict.fromkeys(levels, x)


def tapped(y: Tensor, taps: dict[str, Tensor], name: str) -> Tensor:
    """y plus its tap, if there is one."""
    return y + taps[name].to(y.dtype) if name in taps else y


def objective(p: Params, x: Tensor, teach: Tensor, clip: float) -> Callable[[Params], Tensor]:
    """sum_t <stopgrad(delta_t), y_t> as a function of the level's fast weights. x, teach: [n, D].

    "stopgrad" is meant for the inner gradient alone: a derivative of what is written goes through the signal,
    through x, and through p, the weights that read x.
    """

    def value(fast: Params) -> Tensor:
        return (wide(teach.to(x.dtype)) * wide(level_read({**p, **fast}, x, clip))).sum()

    return value
