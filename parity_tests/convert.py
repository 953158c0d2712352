"""Torch state dicts as this package's parameter trees.

A torch Linear holds [out, in], ours [in, out]; its depthwise convolution [D, 1, W], ours [W, D], both with
the last tap on the current token; its fused qkv rows are the thirds q, k, v.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]

LEVEL_NAMES = {
    "net.0.weight": "ln_scale",
    "net.0.bias": "ln_bias",
    "net.1.weight": "w_up",
    "net.1.bias": "b_up",
    "net.3.weight": "w_down",
    "net.3.bias": "b_down",
}
MLP_NAMES = {
    "norm.weight": "norm_scale",
    "norm.bias": "norm_bias",
    "net.0.weight": "w_up",
    "net.2.weight": "w_down",
}


def under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """Entries of a submodule, under their names within it."""
    return {k[len(prefix) + 1 :]: v for k, v in weights.items() if k.startswith(prefix + ".")}


def renamed(weights: Weights, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Entries under our names, matrices transposed. Raises KeyError on a name without a counterpart."""
    return {names[k]: v.T if v.ndim == 2 else v for k, v in weights.items()}


def level(weights: Weights) -> dict[str, np.ndarray]:
    """One CMS level, or anything with the same names (its gradients, deltas, optimizer moments)."""
    return renamed(weights, LEVEL_NAMES)


def cms(weights: Weights, names: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """The levels of a CMS by name."""
    return {name: level(under(weights, f"blocks.{name}")) for name in names}


def mlp(weights: Weights) -> dict[str, np.ndarray]:
    """The transformer's MLP."""
    return renamed(weights, MLP_NAMES)


def attention(weights: Weights) -> dict[str, np.ndarray]:
    """The attention sublayer, its norm included."""
    q, k, v = np.split(weights["qkv.weight"], 3, axis=0)
    tree = {
        "norm_scale": weights["norm.weight"],
        "norm_bias": weights["norm.bias"],
        "w_q": q.T,
        "w_k": k.T,
        "w_v": v.T,
        "w_out": weights["out_proj.weight"].T,
    }
    if "local_conv.weight" in weights:
        tree["conv"] = weights["local_conv.weight"][:, 0, :].T
    return tree


def stacked(layers: list[Any]) -> Any:
    """Trees of single layers as one tree with a leading layer axis."""
    if isinstance(layers[0], dict):
        return {key: stacked([layer[key] for layer in layers]) for key in layers[0]}
    return np.stack(layers)


def model(weights: Weights, layers: int, levels: Iterable[str] = ()) -> dict[str, Any]:
    """A whole model: `transformer` without level names, `hope_attention` with them."""
    names = list(levels)
    blocks = []
    for i in range(layers):
        block = under(weights, f"blocks.{i}")
        tree: dict[str, Any] = {"attn": attention(under(block, "attn"))}
        if names:
            tree["cms"] = cms(under(block, "cms"), names)
        else:
            tree["mlp"] = mlp(under(block, "mlp"))
        blocks.append(tree)
    return {
        "embed": weights["embed.weight"],
        "blocks": stacked(blocks),
        "final_norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
    }
