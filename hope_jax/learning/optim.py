"""The outer optimizer: AdamW, or Muon for the matrices with AdamW for the rest (SPEC §3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.types import Array, PyTree

NAMES = ("adamw", "muon_hybrid")
SCHEDULES = ("cosine", "constant")
MATRIX, OTHER = "muon", "adamw"


class OptimRule(NamedTuple):
    """Constants of the outer optimizer; rates are per step, steps counted from `step_offset`.

    name: of `NAMES`. lr: of AdamW, or of Muon. adam_lr: of the AdamW part of the hybrid.
    total_steps: where `cosine` reaches final_lr_fraction * lr, and the cool-down of `constant` ends.
    grad_clip: bound on the global norm; 0: off.
    """

    name: str
    lr: float
    adam_lr: float
    total_steps: int
    weight_decay: float = 0.02
    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    final_lr_fraction: float = 0.1
    grad_clip: float = 1.0
    step_offset: int = 0


def lr_fraction(rule: OptimRule) -> Callable[[Array | int], Array]:
    """The learning rate's fraction of its peak, [] at an outer step."""
    warmup, total = rule.warmup_steps, max(rule.total_steps, 1)
    if rule.schedule == "cosine":
        fraction = optax.cosine_decay_schedule(1.0, max(total - warmup, 1), rule.final_lr_fraction)
    else:
        hold = max(total - warmup - rule.cooldown_steps, 0)
        down = optax.linear_schedule(1.0, rule.final_lr_fraction, rule.cooldown_steps)
        flat = optax.constant_schedule(1.0)
        fraction = optax.join_schedules([flat, down], [hold]) if rule.cooldown_steps else flat

    def schedule(step: Array | int) -> Array:
        rise = jnp.minimum((step + 1) / warmup, 1.0) if warmup else jnp.ones(())
        return jnp.where(step < warmup, rise, fraction(jnp.maximum(step - warmup, 0)))

    return schedule


def parameter_groups(params: PyTree) -> PyTree:
    """`MATRIX` or `OTHER` for each leaf.

    Matrices are the weights `w_*` of the blocks, stacks [L, in, out]. The embedding is a table and the
    depthwise convolution a set of filters: neither is a linear map to orthogonalise.
    """

    def group(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> str:
        is_matrix = path[0].key == "blocks" and str(path[-1].key).startswith("w_") and leaf.ndim == 3
        return MATRIX if is_matrix else OTHER

    return jax.tree_util.tree_map_with_path(group, params)


def describe_groups(rule: OptimRule, params: PyTree) -> str:
    """One line with the number of elements that each optimizer updates."""
    counts = {MATRIX: 0, OTHER: 0}
    for name, leaf in zip(jax.tree.leaves(parameter_groups(params)), jax.tree.leaves(params), strict=True):
        counts[name] += int(np.prod(leaf.shape))
    if rule.name == "adamw":
        return f"optimizer: adamw updates all {sum(counts.values()):,} parameters"
    return (
        f"optimizer: muon updates {counts[MATRIX]:,} parameters (matrices of the blocks), "
        f"adamw {counts[OTHER]:,} (embedding, norms, biases, filters)"
    )


def make_optimizer(rule: OptimRule) -> optax.GradientTransformation:
    """The optimizer of a rule; weight decay falls on the matrices of the blocks alone.

    Raises:
      ValueError: unknown name or schedule.
    """
    if rule.name not in NAMES:
        raise ValueError(f"optim.name: want one of {', '.join(NAMES)}; got {rule.name!r}")
    if rule.schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule: want one of {', '.join(SCHEDULES)}; got {rule.schedule!r}")
    fraction = lr_fraction(rule)

    def rate(peak: float) -> Callable[[Array], Array]:
        return lambda count: peak * fraction(count + rule.step_offset)

    def is_matrix(params: PyTree) -> PyTree:
        return jax.tree.map(lambda group: group == MATRIX, parameter_groups(params))

    def adamw(lr: float) -> optax.GradientTransformation:
        return optax.adamw(
            rate(lr), b1=rule.b1, b2=rule.b2, eps=rule.eps, weight_decay=rule.weight_decay, mask=is_matrix
        )

    if rule.name == "adamw":
        update = adamw(rule.lr)
    else:
        stack = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        muon = optax.contrib.muon(
            rate(rule.lr),
            beta=rule.momentum,
            weight_decay=rule.weight_decay,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: stack, params),
        )
        plain = optax.adamw(rate(rule.adam_lr), b1=rule.b1, b2=rule.b2, eps=rule.eps, weight_decay=0.0)
        update = optax.partition({MATRIX: muon, OTHER: plain}, parameter_groups)
    clip = optax.clip_by_global_norm(rule.grad_clip) if rule.grad_clip else optax.identity()
    return optax.chain(clip, update)
