"""Memories as layers: they own a memory's parameters and hand them to its pure functions. One sequence."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from hope_jax.memory import titans_rule
from hope_jax.memory.cms import MIX, Cms, IndependentCms
from hope_jax.memory.cms_nested import NestedCms
from hope_jax.memory.self_mod import SelfModCarry, SelfModState
from hope_jax.memory.state import WriteStats
from hope_jax.memory.titan import Titan
from hope_jax.models import layers
from hope_jax.models.attention import ReadContext
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array, PyTree

ALPHA_BIAS = 7.0
"""Modern style's first bias of the retention gate: alpha starts near sigmoid(7) = 0.9991."""

SELF_MODIFIER_SCALE = 1e-3
"""Factor on the SelfModifier's last matrix at the start: its correction is small beside delta."""

GATE_BIASES = {"alpha": -7.0, "eta": 2.2, "theta": 0.5413}
"""First biases of the Titans rule's gates: decay 0.0009, momentum 0.9, the level's own rate."""


CONNECTIONS: Mapping[str, type[Cms]] = {"sequential": Cms, "independent": IndependentCms, "nested": NestedCms}
"""How the levels of a CMS are connected, by `ModelSpec.cms_connection`."""


def make_cms(spec: ModelSpec, *, training: bool = False) -> Cms:
    """The CMS that a spec describes."""
    return CONNECTIONS[spec.cms_connection](
        levels=spec.cms_levels,
        chunk_size=spec.chunk_size,
        gate_rule=spec.gate,
        bounds=spec.bounds,
        own_output=spec.own_output,
        output_clip=spec.read_clip if training else None,
        activation=spec.activation,
        flush_partial_at_end=spec.flush_partial_at_end,
    )


class CmsParams(nn.Module):
    """Owns the parameters of one CMS level."""

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The level's parameters."""
        spec, dtype = self.spec, self.spec.param_dtype
        up, down = (spec.dim, spec.cms_hidden), (spec.cms_hidden, spec.dim)
        params = {}
        if spec.cms_norm:
            params["ln_scale"] = self.param("ln_scale", nn.initializers.ones, (spec.dim,), dtype)
            params["ln_bias"] = self.param("ln_bias", nn.initializers.zeros, (spec.dim,), dtype)
        params["w_up"] = self.param("w_up", layers.matrix_init(spec), up, dtype)
        params["w_down"] = self.param("w_down", layers.matrix_init(spec, residual=True), down, dtype)
        if not spec.modern:
            params["b_up"] = self.param("b_up", layers.bias_init(up[0]), up[1:], dtype)
            params["b_down"] = self.param("b_down", layers.bias_init(down[0]), down[1:], dtype)
        return params


class CmsLayer(nn.Module):
    """The CMS as a layer."""

    spec: ModelSpec
    training: bool = False

    @nn.compact
    def __call__(self, x_nd: Array, fast: PyTree, taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """See `Cms.read`."""
        spec = self.spec
        params: PyTree = {level.name: CmsParams(spec, name=level.name)() for level in spec.cms_levels}
        if spec.cms_connection == "independent":
            shape = (len(spec.cms_levels),)
            params[MIX] = self.param(MIX, nn.initializers.zeros, shape, spec.param_dtype)
        return make_cms(spec, training=self.training).read(params, fast, x_nd, taps)


class MlpWeights(nn.Module):
    """Owns the first weights of one self-modifying memory, matrices (out, in)."""

    spec: ModelSpec
    out: int
    skip: bool

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Its weights."""
        spec, dtype, dim = self.spec, self.spec.param_dtype, self.spec.dim
        init = layers.transposed_init(layers.matrix_init(spec))
        residual = layers.transposed_init(layers.matrix_init(spec, residual=True))
        params = {
            "w_in": self.param("w_in", init, (dim, dim), dtype),
            "w_out": self.param("w_out", residual, (self.out, dim), dtype),
        }
        if self.skip:
            params["w_skip"] = self.param("w_skip", init, (self.out, dim), dtype)
        return params


class SelfModLayer(nn.Module):
    """Self-modifying Titans as a layer."""

    spec: ModelSpec

    @nn.compact
    def __call__(
        self, x_nd: Array, fast: SelfModState | None, carry: SelfModCarry | None, context: ReadContext
    ) -> tuple[Array, SelfModState | None, SelfModCarry | None, dict[str, WriteStats]]:
        """See `SelfMod.read`."""
        spec, dtype, rule = self.spec, self.spec.param_dtype, self.spec.self_mod
        params: dict[str, Any] = {}
        if rule.conv_window:
            shape = (rule.conv_window, spec.dim)
            params["conv"] = self.param("conv", layers.conv_init(spec, rule.conv_window), shape, dtype)
        if not rule.adaptive_q:
            init = layers.transposed_init(layers.matrix_init(spec))
            params["w_q"] = self.param("w_q", init, (spec.dim, spec.dim), dtype)
        for name in (*rule.generator_names(), "memory"):
            out = 1 if name in ("eta", "alpha") else spec.dim
            params[name] = MlpWeights(spec, out, rule.projection_skip and out != spec.dim, name=name)()
        if rule.use_alpha and spec.alpha_near_one:
            params["b_alpha"] = self.param("b_alpha", nn.initializers.constant(ALPHA_BIAS), (), dtype)
        position = context.position if context.clock is None else context.clock
        return rule.read(
            params,
            fast,
            carry,
            x_nd,
            position=position,
            reduce=spec.reduce,
            active_n=context.segments_n > 0,
            segments=context.segments_with(rule.conv_window - 1) if rule.conv_window else None,
        )


def make_titan(spec: ModelSpec, *, training: bool = False) -> Titan:
    """The TITAN memory that a spec describes."""
    return Titan(
        level=spec.titan_level,
        chunk_size=spec.chunk_size,
        gate_rule=spec.gate,
        bounds=spec.bounds,
        own_output=spec.own_output,
        output_clip=spec.read_clip if training else None,
        activation=spec.activation,
        flush_partial_at_end=spec.flush_partial_at_end,
        self_modifier=spec.self_modifier,
        correction_clip=spec.correction_clip,
    )


class SelfModifier(nn.Module):
    """Owns the parameters of a SelfModifier."""

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """See `hope_jax.memory.titan.self_modifier_read`."""
        spec, init = self.spec, layers.matrix_init(self.spec)

        def small(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return SELF_MODIFIER_SCALE * init(key, shape, dtype)

        widths = (3 * spec.dim, spec.titan_hidden, spec.titan_hidden, spec.dim)
        params = {}
        for i in (1, 2, 3):
            shape = widths[i - 1 : i + 1]
            params[f"w_{i}"] = self.param(f"w_{i}", small if i == 3 else init, shape, spec.param_dtype)
            if not spec.modern:
                bias = nn.initializers.zeros if i == 3 else layers.bias_init(shape[0])
                params[f"b_{i}"] = self.param(f"b_{i}", bias, shape[1:], spec.param_dtype)
        return params


class TitansGates(nn.Module):
    """Owns the parameters of the Titans rule's gates, which start without dependence on the data."""

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """See `hope_jax.memory.titans_rule.token_gates`."""
        spec, params = self.spec, {}
        for name, start in GATE_BIASES.items():
            zeros, bias = nn.initializers.zeros, nn.initializers.constant(start)
            params[f"w_{name}"] = self.param(f"w_{name}", zeros, (spec.dim,), spec.param_dtype)
            params[f"b_{name}"] = self.param(f"b_{name}", bias, (), spec.param_dtype)
        return params


class TitanLayer(nn.Module):
    """The TITAN memory as a layer."""

    spec: ModelSpec
    training: bool = False

    @nn.compact
    def __call__(self, x_nd: Array, fast: PyTree, taps: dict[str, Array]) -> tuple[Array, Array]:
        """See `Titan.read`."""
        spec, dtype = self.spec, self.spec.param_dtype
        up, down = (spec.dim, spec.titan_hidden), (spec.titan_hidden, spec.dim)
        # Its output is normed, so the size of a residual branch is set by the norm's scale.
        scale = (2 * spec.num_layers) ** -0.5 if spec.modern else 1.0
        params: dict[str, Any] = {
            "w_up": self.param("w_up", layers.matrix_init(spec), up, dtype),
            "w_down": self.param("w_down", layers.matrix_init(spec), down, dtype),
            "ln_scale": self.param("ln_scale", nn.initializers.constant(scale), (spec.dim,), dtype),
            "ln_bias": self.param("ln_bias", nn.initializers.zeros, (spec.dim,), dtype),
        }
        if not spec.modern:
            params["b_up"] = self.param("b_up", layers.bias_init(up[0]), up[1:], dtype)
            params["b_down"] = self.param("b_down", layers.bias_init(down[0]), down[1:], dtype)
        if spec.self_modifier:
            params["self_modifier"] = SelfModifier(spec, name="self_modifier")()
        if spec.titan_level.optimizer == titans_rule.NAME:
            params["gates"] = TitansGates(spec, name="gates")()
        return make_titan(spec, training=self.training).read(params, fast, x_nd, taps)
