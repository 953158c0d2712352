"""Continuum Memory System: MLP levels, each written every C tokens (Eqs. 70-71, 74, SPEC §2.1).

Sequential: y = MLP_k(... MLP_1(x)). Independent: y = sum_l softmax(w)_l MLP_l(x), w learned. Level l with
period C is written at token counts that are multiples of C with

    theta_l <- theta_l - eta_l u,   u = inner optimizer of  sum_t m_t d<stopgrad(delta_t), y_t>/dtheta_l

over exactly its last C tokens, all gradients at the weights that read those tokens. One example and one
layer; rows are tokens. The slow weights theta never change here: a write changes `delta`.
`hope_jax.memory.cms_nested` has the nested connection.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import gate, mlp_memory
from hope_jax.memory.level_write import LevelWriter, init_level
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import Bounds, LevelState, WriteRules
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats
from hope_jax.types import Array, PyTree

__all__ = ["Bounds", "Cms", "IndependentCms", "LevelState"]

MIX = "mix"
"""Name of the parameter w of the independent connection, among the names of the levels."""


class LevelChunk(NamedTuple):
    """One chunk of n tokens as a level's write sees it: factors of its gradient, zero where mask
    (bool [n]) is False, and the layer's signal."""

    factors: WriteFactors
    mask: Array
    signal: WriteSignal


@dataclass(frozen=True)
class Cms:
    """The constants of a sequential CMS: a memory of the protocol in `hope_jax.memory.state`.

    levels: in chain order. chunk_size: tokens of an online chunk (N). own_output: levels take their own
    teach signal rather than the block's. output_clip: bound on each level's residual branch while
    training (reference style). activation: of the levels' hidden layers, a name of
    `mlp_memory.ACTIVATIONS`. flush_partial_at_end: write unfinished periods when a stream ends.
    """

    levels: tuple[LevelSpec, ...]
    chunk_size: int
    gate_rule: gate.GateRule = gate.GateRule()
    bounds: Bounds = Bounds()
    own_output: bool = True
    output_clip: float | None = None
    activation: str = "gelu"
    flush_partial_at_end: bool = False

    @property
    def write_only(self) -> tuple[str, ...]:
        """No parameter acts through writes alone."""
        return ()

    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, in chain order."""
        return tuple(spec.name for spec in self.levels)

    def without_gradient(self, tokens: int) -> tuple[str, ...]:
        """None: reads use every parameter."""
        del tokens
        return ()

    def taps(self) -> tuple[str, ...]:
        """Levels whose own output cotangent is wanted."""
        return tuple(spec.name for spec in self.levels) if self.own_output else ()

    def for_writes(self, params: PyTree) -> PyTree:
        """See `Memory.for_writes`."""
        return {**params, **{s.name: mlp_memory.measured(params[s.name]) for s in self.levels}}

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The state of a context that has written nothing. `params`: one layer's, by level name."""
        return {spec.name: init_level(spec, params[spec.name], self.chunk_size) for spec in self.levels}

    def read(
        self, params: PyTree, fast: dict[str, PyTree] | None, x: Array, taps: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """x [n, D] -> y [n, D], and each level's own input by name.

        fast None reads the slow weights alone. taps: level name -> [n, D], added to that level's output:
        zeros, whose gradient is the level's teach signal.
        """
        trace = {}
        for spec in self.levels:
            trace[spec.name] = x
            x = self._read_level(spec.name, params, fast, x, taps)
        return x, trace

    def recorded(self, trace: dict[str, Array], factors: PyTree) -> dict[str, Array | WriteFactors]:
        """Under own-output signals the gradient of a write is, token by token, a multiple of the read's: its
        factors take the place of the level's input. (`dgd` needs outputs too, and reads again.)"""
        if not self.own_output:
            return dict(trace)
        return {
            spec.name: trace[spec.name]
            if self._needs_outputs(spec)
            else mlp_memory.factors_of_read(factors[spec.name])
            for spec in self.levels
        }

    def _needs_outputs(self, spec: LevelSpec) -> bool:
        """Whether a level's tokens are written by a rule that asks for the level's outputs."""
        return spec.optimizer == "dgd"

    def _read_level(
        self, name: str, params: PyTree, fast: dict[str, PyTree] | None, x: Array, taps: dict[str, Array]
    ) -> Array:
        """One level's output, with its tap."""
        delta = None if fast is None else fast[name].delta
        y = mlp_memory.read(params[name], delta, x, output_clip=self.output_clip, activation=self.activation)
        return y + taps[name].astype(y.dtype) if name in taps else y

    def write(
        self,
        params: PyTree,
        fast: dict[str, PyTree],
        trace: dict[str, Array | WriteFactors],
        signal: WriteSignal,
        *,
        position: Array,
        reduce: Reduce,
        last: bool = False,
    ) -> tuple[dict[str, PyTree], dict[str, WriteStats]]:
        """Writes every level with one chunk; see `Memory.write`. trace: of `read`, or `recorded`."""
        mask = gate.token_mask(self.gate_rule, signal.surprise_n, signal.active_n)
        new_fast: dict[str, PyTree] = {}
        stats: dict[str, WriteStats] = {}
        for spec in self.levels:
            name = spec.name
            factors = self._factors(params[name], fast[name].delta, trace[name], signal, mask, name)
            chunk = LevelChunk(factors, mask, signal._replace(own={}, gain={}))
            new_fast[name], written = self._write_level(
                spec, params[name], fast[name], chunk, position=position, reduce=reduce, last=last
            )
            stats |= written
        return new_fast, stats

    def _factors(
        self,
        params: PyTree,
        delta: PyTree,
        trace: Array | WriteFactors,
        signal: WriteSignal,
        mask: Array,
        name: str,
    ) -> WriteFactors:
        """Of the gradient of one level's write, zero where mask (bool [n]) is False."""
        if isinstance(trace, WriteFactors):
            return mlp_memory.with_gain(trace, jnp.where(mask, signal.gain[name], 0))
        teach = signal.own[name] if self.own_output else signal.block
        teach = jnp.where(mask[:, None], teach, 0)
        return mlp_memory.write_factors(
            params, delta, trace, teach, output_clip=self.output_clip, activation=self.activation
        )

    def _rules(self) -> WriteRules:
        return WriteRules(self.chunk_size, self.gate_rule, self.bounds, self.flush_partial_at_end)

    def _write_level(
        self,
        spec: LevelSpec,
        params: PyTree,
        state: PyTree,
        chunk: LevelChunk,
        *,
        position: Array,
        reduce: Reduce,
        last: bool,
    ) -> tuple[PyTree, dict[str, WriteStats]]:
        """One level's new state, and statistics under the names of `level_names`."""
        writer = LevelWriter(self._rules(), spec, params, reduce)
        state, stats = writer.write(state, *chunk, position, last)
        return state, {spec.name: stats}


@dataclass(frozen=True)
class IndependentCms(Cms):
    """The constants of an independent CMS (Eq. 74): every level reads the CMS's input, and the outputs are
    averaged with the weights softmax(w). `params["mix"]`: w [levels], slow."""

    def read(
        self, params: PyTree, fast: dict[str, PyTree] | None, x: Array, taps: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """As `Cms.read`. A tap stands before the average, so a level's own signal has its weight in it."""
        outputs = [self._read_level(spec.name, params, fast, x, taps) for spec in self.levels]
        # In bfloat16 the rounded weights would not sum to 1 and scale the residual stream.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weights = jax.nn.softmax(params[MIX].astype(wide))
        y = sum((w * y.astype(wide) for w, y in zip(weights, outputs, strict=True)), jnp.zeros((), wide))
        return y.astype(x.dtype), {spec.name: x for spec in self.levels}
