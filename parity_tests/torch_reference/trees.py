"""Maps over nested dicts, lists, tuples and dataclasses of tensors."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def tree_map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with every tensor replaced by function(tensor); whatever else it holds stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, value) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return type(tree)(**{f.name: tree_map(function, getattr(tree, f.name)) for f in fields(tree)})
    return tree


def detach(tree: Any) -> Any:
    """The tree as constants."""
    return tree_map(Tensor.detach, tree)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors, in a fixed order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found


def select(tree: Any, index: int) -> Any:
    """Every tensor at an index of its first axis."""
    return tree_map(lambda leaf: leaf[index], tree)


def gradient(value: Tensor, tree: Any, **options: Any) -> Any:
    """d value / d tree as a tree; zeros where value does not depend on a tensor."""
    leaves = tensors(tree)
    grads = torch.autograd.grad(value, leaves, allow_unused=True, **options)
    filled = iter([torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)])
    return tree_map(lambda _: next(filled), tree)
