"""The outer optimizers: AdamW, Muon and M3, which parameters each updates, and which stay."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from hope_jax.core.ranges import Decay, NonNegative, Positive, Whole
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.newton_schulz import QUINTIC, Spread, iterate_all
from hope_jax.models import blocks
from hope_jax.optim.m3 import M3Rule, scale_by_m3

Policy = Literal["all", "memories_frozen", "backbone_frozen"]
"""Which parameters train."""

MATRIX, OTHER, FROZEN = "matrix", "other", "frozen"

MUON_STEPS = 5
"""Newton-Schulz iterations of Muon."""

FINAL_LR = 0.1
"""Where the schedules end, as a fraction of the peak."""


@dataclass(frozen=True)
class Optim:
    """The outer optimizer. `muon_hybrid` and `m3` update the matrices of the blocks, `muon` the embedding
    too; AdamW updates the rest."""

    name: Literal["adamw", "muon_hybrid", "muon", "m3"] = "muon_hybrid"  # who updates the matrices
    lr: NonNegative = 2.5e-4  # peak
    adam_lr: NonNegative | None = None  # of what AdamW updates beside Muon or M3; None: lr
    weight_decay: NonNegative = 0.02  # decoupled; matrices of the blocks only
    momentum: Decay = 0.95  # Muon
    b1: Decay = 0.9  # AdamW
    b2: Decay = 0.999  # AdamW
    eps: Positive = 1e-8  # AdamW
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"  # of AdamW's first moment, Muon's momentum
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up; both end at a tenth of lr
    warmup_steps: Whole = 0  # linear, from 0 to lr
    cooldown_steps: Whole = 0  # linear, at the end of `constant`
    grad_clip: NonNegative = 1.0  # bound on the global norm of what is trained; 0: off
    m3: M3Rule = M3Rule()


@dataclass(frozen=True)
class OptimRule(Optim):
    """The optimizer of a run. total_steps: where the schedule ends. step_offset: steps that count as done."""

    total_steps: int = 1
    step_offset: int = 0
    param_policy: Policy = "all"

    @property
    def kept_as(self) -> jnp.dtype | None:
        """The dtype of decaying means of gradients; None: the parameters'. Second moments, which move by a
        thousandth (1 - b2) a step, and M3's sums, which move less and less, would stand still in bfloat16."""
        return jnp.dtype("bfloat16") if self.momentum_dtype == "bfloat16" else None


def lr_fraction(rule: OptimRule) -> Callable[[Array | int], Array]:
    """The learning rate's fraction of its peak, [] at an outer step."""
    warmup, total = rule.warmup_steps, max(rule.total_steps, 1)
    if rule.schedule == "cosine":
        fraction = optax.cosine_decay_schedule(1.0, max(total - warmup, 1), FINAL_LR)
    else:
        hold = max(total - warmup - rule.cooldown_steps, 0)
        down = optax.linear_schedule(1.0, FINAL_LR, rule.cooldown_steps)
        flat = optax.constant_schedule(1.0)
        fraction = optax.join_schedules([flat, down], [hold]) if rule.cooldown_steps else flat

    def schedule(step: Array | int) -> Array:
        rise = jnp.minimum((step + 1) / warmup, 1.0) if warmup else jnp.ones(())
        return jnp.where(step < warmup, rise, fraction(jnp.maximum(step - warmup, 0)))

    return schedule


def parameter_groups(params: PyTree, *, tables: bool = False) -> PyTree:
    """`MATRIX` or `OTHER` for each leaf.

    Matrices are the weights `w_*` of the blocks, stacks [L, rows, columns], each layer one matrix. A map to
    or from a single number (a side of length 1) is a vector: orthogonalising would only normalise it. Tables,
    the two-dimensional parameters outside the blocks (the embedding [V, D]), count as matrices if `tables`
    says so: each row is the map of one token, not of a direction. The depthwise convolution is
    a set of filters, no linear map: `OTHER`, with norms, biases and scalars.
    """

    def group(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> str:
        if path[0].key != "blocks":
            return MATRIX if tables and leaf.ndim == 2 else OTHER
        is_matrix = str(path[-1].key).startswith("w_") and leaf.ndim >= 3 and min(leaf.shape[-2:]) > 1
        return MATRIX if is_matrix else OTHER

    return jax.tree_util.tree_map_with_path(group, params)


def muon_axes(params: PyTree) -> PyTree:
    """Muon's input (reduction) and output axis of each matrix or table; other axes are a batch. Newton-Schulz
    does not care which is which, the step's scale sqrt(max(1, out / in)) does."""

    def axes(path: tuple[jax.tree_util.DictKey, ...], _: Array) -> optax.contrib.MuonDimensionNumbers:
        out_in = any(part.key in blocks.OUT_IN for part in path)
        return optax.contrib.MuonDimensionNumbers(*((-1, -2) if out_in else (-2, -1)))

    return jax.tree_util.tree_map_with_path(axes, params)


def _is_under(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in names)


_path = partial(jax.tree_util.keystr, simple=True, separator="/")


def update_groups(rule: OptimRule, params: PyTree, untrained: Collection[str] = ()) -> PyTree:
    """`MATRIX` (the named optimizer), `OTHER` (AdamW) or `FROZEN` (neither update, decay nor state) by leaf.

    `muon` takes the embedding among the matrices, `muon_hybrid` and `m3` leave it to AdamW.

    Raises:
      ValueError: a name of `untrained` stands for no parameter.
    """
    policy, paths = rule.param_policy, [_path(path) for path, _ in jax.tree.leaves_with_path(params)]
    for name in untrained:
        if not any(_is_under(path, [name]) for path in paths):
            raise ValueError(f"untrained: no parameter is called {name!r} or lies below it")

    def group(path: tuple[jax.tree_util.DictKey, ...], kind: str) -> str:
        is_memory = _is_under(_path(path), [f"blocks/{name}" for name in blocks.MEMORIES])
        kept = policy != "all" and is_memory == (policy == "memories_frozen")
        return FROZEN if kept or _is_under(_path(path), untrained) else kind

    return jax.tree_util.tree_map_with_path(group, parameter_groups(params, tables=rule.name == "muon"))


def describe_groups(rule: OptimRule, params: PyTree, untrained: Collection[str] = ()) -> str:
    """One line with the number of elements that each optimizer updates, and what is left out and why."""
    sizes = dict.fromkeys((MATRIX, OTHER, FROZEN, *untrained), 0)
    groups = jax.tree.leaves(update_groups(rule, params, untrained))
    for (path, leaf), group in zip(jax.tree.leaves_with_path(params), groups, strict=True):
        sizes[next((name for name in untrained if _is_under(_path(path), [name])), group)] += leaf.size
    matrices, others = sizes[MATRIX], sizes[OTHER]
    tables, rest = (" and the embedding", "") if rule.name == "muon" else ("", "embedding, ")
    line = f"optimizer: adamw updates {matrices + others:,} parameters"
    if rule.name != "adamw":
        named = rule.name.removesuffix("_hybrid")
        line = f"optimizer: {named} updates {matrices:,} parameters (matrices of the blocks{tables}), adamw "
        line += f"{others:,} ({rest}norms, biases, filters)"
    if rule.param_policy != "all":
        line += f"; train.param_policy={rule.param_policy} leaves {sizes[FROZEN]:,} as they are"
    for name in untrained:
        line += f"; {name} ({sizes[name]:,}) receives no gradient in this mode and is left out"
    return line


def make_optimizer(
    rule: OptimRule, untrained: Collection[str] = (), spread: Spread | None = None
) -> optax.GradientTransformation:
    """The optimizer of a rule; weight decay falls on the matrices of the blocks alone.

    untrained: parameters that the training mode gives no gradient, by path ("blocks/titan/self_modifier")
    with all that lies below. They and what `param_policy` freezes have no part in it: no update, no decay,
    no state, and no share in the norm that `grad_clip` bounds. spread: Newton-Schulz over devices.

    Raises:
      ValueError: an `untrained` name that stands for no parameter, when the optimizer first sees these.
    """

    groups = partial(update_groups, rule, untrained=untrained)
    other_lr = rule.lr if rule.name == "adamw" or rule.adam_lr is None else rule.adam_lr
    parts = {
        MATRIX: _named_optimizer(rule, spread),
        OTHER: _adamw(rule, other_lr, 0.0),
        FROZEN: optax.set_to_zero(),
    }
    drop = optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(lambda group: group == FROZEN, groups(p)))
    clip = optax.clip_by_global_norm(rule.grad_clip) if rule.grad_clip else optax.identity()
    return optax.chain(drop, clip, optax.partition(parts, groups))


def _rate(rule: OptimRule, peak: float) -> Callable[[Array], Array]:
    fraction = lr_fraction(rule)
    return lambda count: peak * fraction(count + rule.step_offset)


def _adamw(rule: OptimRule, peak: float, decay: float) -> optax.GradientTransformation:
    betas = rule.b1, rule.b2
    return optax.adamw(_rate(rule, peak), *betas, rule.eps, mu_dtype=rule.kept_as, weight_decay=decay)


def _named_optimizer(rule: OptimRule, spread: Spread | None) -> optax.GradientTransformation:
    """The optimizer that updates the group `MATRIX`."""
    rate = _rate(rule, rule.lr)
    if rule.name == "adamw":
        return _adamw(rule, rule.lr, rule.weight_decay)
    if rule.name == "m3":
        return optax.chain(
            scale_by_m3(rule.m3, spread),
            optax.add_decayed_weights(rule.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
    return optax.chain(
        # Momentum by optax, without its iteration.
        optax.contrib.scale_by_muon(
            ns_steps=0, beta=rule.momentum, mu_dtype=rule.kept_as, weight_dimension_numbers=muon_axes
        ),
        optax.stateless(lambda momentum, _: _muon_direction(momentum, spread)),
        optax.add_decayed_weights(
            rule.weight_decay, lambda params: jax.tree.map(lambda g: g == MATRIX, parameter_groups(params))
        ),
        optax.scale_by_learning_rate(rate),
    )


def _muon_direction(momentum: PyTree, spread: Spread | None) -> PyTree:
    """Muon's direction from momentum of norm 1, [..., rows, columns]: singular values near
    sqrt(max(1, out / in))."""

    def scaled(matrix: Array, axes: optax.contrib.MuonDimensionNumbers) -> Array:
        fan_in, fan_out = (matrix.shape[axis] for axis in axes)
        return max(1.0, fan_out / fan_in) ** 0.5 * matrix

    return jax.tree.map(scaled, iterate_all(momentum, QUINTIC, MUON_STEPS, spread), muon_axes(momentum))
