"""Small random models and examples for comparing production with the oracles."""

from typing import Any

import numpy as np

from tests.oracle.model import Arch
from tests.oracle.stream import Example

DIM, HIDDEN, VOCAB, LAYERS, HEADS = 8, 16, 11, 2, 2


class Draw:
    """Seeded draws: matrices scaled by 1/sqrt(fan_in), vectors near 1 or 0."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def matrix(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape) / np.sqrt(shape[-2])

    def scale(self, *shape: int) -> np.ndarray:
        return 1.0 + 0.2 * self.rng.normal(size=shape)

    def bias(self, *shape: int) -> np.ndarray:
        return 0.2 * self.rng.normal(size=shape)


def level_params(
    draw: Draw, biases: bool, layers: tuple[int, ...] = (), *, norm: bool = True
) -> dict[str, Any]:
    """One CMS level, with a leading layer axis if `layers` has one. norm: with LayerNorm."""
    params = {"ln_scale": draw.scale(*layers, DIM), "ln_bias": draw.bias(*layers, DIM)} if norm else {}
    params |= {"w_up": draw.matrix(*layers, DIM, HIDDEN), "w_down": draw.matrix(*layers, HIDDEN, DIM)}
    if biases:
        params["b_up"], params["b_down"] = draw.bias(*layers, HIDDEN), draw.bias(*layers, DIM)
    return params


def model_params(arch: Arch, seed: int = 0, conv: int = 0) -> dict[str, Any]:
    """A whole model: `transformer` if the architecture has no levels."""
    draw, reference = Draw(seed), arch.style == "reference"
    attn = {"norm_scale": draw.scale(LAYERS, DIM)}
    attn.update({name: draw.matrix(LAYERS, DIM, DIM) for name in ("w_q", "w_k", "w_v", "w_out")})
    if arch.qk_norm == "rms":
        attn.update({name: draw.scale(LAYERS, DIM // arch.heads) for name in ("q_scale", "k_scale")})
    if conv:
        attn["conv"] = draw.bias(LAYERS, conv, DIM) + 0.5
    blocks: dict[str, Any] = {"attn": attn}
    if arch.levels:
        blocks["cms"] = {
            name: level_params(draw, reference, (LAYERS,), norm=arch.cms_norm) for name in arch.levels
        }
        if arch.connection == "independent":
            blocks["cms"]["mix"] = 2 * draw.bias(LAYERS, len(arch.levels))
    else:
        blocks["mlp"] = {
            "norm_scale": draw.scale(LAYERS, DIM),
            "w_up": draw.matrix(LAYERS, DIM, HIDDEN),
            "w_down": draw.matrix(LAYERS, HIDDEN, DIM),
        }
    params = {
        "embed": 0.5 * draw.rng.normal(size=(VOCAB, DIM)),
        "blocks": blocks,
        "final_norm": {"scale": draw.scale(DIM)},
    }
    if reference:
        attn["norm_bias"] = draw.bias(LAYERS, DIM)
        params["final_norm"]["bias"] = draw.bias(DIM)
        if not arch.levels:
            blocks["mlp"]["norm_bias"] = draw.bias(LAYERS, DIM)
    return params


def examples(count: int, tokens: int, seed: int = 0) -> list[Example]:
    """Rows of two documents each and a little padding; the last token of a document has no target, nor have
    a few others."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(0, VOCAB, tokens)
        first = int(rng.integers(tokens // 3, 2 * tokens // 3))
        segments = np.where(np.arange(tokens) < first, 1, 2)
        segments[tokens - 1] = 0
        targets = np.append(ids[1:], -1)
        targets[[first - 1, tokens - 2, int(rng.integers(0, tokens))]] = -1
        rows.append(Example(tuple(ids.tolist()), tuple(targets.tolist()), tuple(segments.tolist())))
    return rows
