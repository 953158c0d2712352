"""Small random models and examples for comparing production with the oracles."""

from typing import Any

import numpy as np

from tests.oracle.layers import Arch
from tests.oracle.stream import Example
from tests.oracle.writes import Level, Token

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


def level_params(draw: Draw, biases: bool, layers: tuple[int, ...] = (), *, norm: bool = True) -> Any:
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
        how = {"biases": reference, "layers": (LAYERS,), "norm": arch.cms_norm}
        blocks["cms"] = {name: level_params(draw, **how) for name in arch.levels}
        if arch.connection == "independent":
            blocks["cms"]["mix"] = 2 * draw.bias(LAYERS, len(arch.levels))
    else:
        blocks["mlp"] = {"norm_scale": draw.scale(LAYERS, DIM), "w_up": draw.matrix(LAYERS, DIM, HIDDEN)}
        blocks["mlp"]["w_down"] = draw.matrix(LAYERS, HIDDEN, DIM)
    embed, final = 0.5 * draw.rng.normal(size=(VOCAB, DIM)), {"scale": draw.scale(DIM)}
    if reference:
        attn["norm_bias"], final["bias"] = draw.bias(LAYERS, DIM), draw.bias(DIM)
        if not arch.levels:
            blocks["mlp"]["norm_bias"] = draw.bias(LAYERS, DIM)
    return {"embed": embed, "blocks": blocks, "final_norm": final}


def chunks(
    levels: tuple[Level, ...], lengths: tuple[int, ...], seed: int, *, idle: float = 0.25, own: float = 1.0
) -> list[dict[str, Any]]:
    """What levels are written with, by chunk: inputs `x` and signals `own` by level, the block's signal (a
    share `idle` of the tokens has none) and its surprise. own: the size of a level's signal."""
    rng, made = np.random.default_rng(seed), []
    for n in lengths:
        block = rng.normal(size=(n, DIM))
        block[rng.random(n) < idle] = 0.0
        x = {level.name: rng.normal(size=(n, DIM)) for level in levels}
        signals = {level.name: own * rng.normal(size=(n, DIM)) for level in levels}
        made.append(
            {"x": x, "own": signals, "block": block, "surprise": np.linalg.norm(block, axis=-1) + 0.1}
        )
    return made


def tokens_of(chunk: dict[str, Any], own_output: bool = True) -> list[list[dict[str, Token]]]:
    """One of `chunks` as the oracle's `Cms.write_chunk` takes it."""
    taught = chunk["own"] if own_output else dict.fromkeys(chunk["x"], chunk["block"])
    return [
        [{name: Token(x[t], taught[name][t], on, surprise, on) for name, x in chunk["x"].items()}]
        for t, (surprise, on) in enumerate(zip(chunk["surprise"], chunk["block"].any(-1), strict=True))
    ]


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
