"""Continuum Memory System: MLP levels, each written every C tokens (Eqs. 70-71, 74).

Sequential: y = MLP_k(... MLP_1(x)). Independent: y = sum_l softmax(w)_l MLP_l(x), w learned. Level l with
period C is written at token counts that are multiples of C with

    theta_l <- theta_l - eta_l u,   u = inner optimizer of  sum_t m_t d<stopgrad(delta_t), y_t>/dtheta_l

over exactly its last C tokens, all gradients at the weights that read those tokens. One example and one
layer; rows are tokens. The slow weights theta never change here: a write changes `delta`.
`hope_jax.memory.cms_nested` has the nested connection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, zeros

from hope_jax.core.ranges import Count
from hope_jax.core.types import Array, FrozenMapping, PyTree
from hope_jax.memory import flops, initial, mlp_memory
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import ArrayKinds, Entries, Initial
from hope_jax.memory.level_write import LevelWriter, init_level
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import Trace, WriteFactors
from hope_jax.memory.period_write import LevelTokens, WriteRules
from hope_jax.memory.rules import RULES
from hope_jax.memory.state import Memory, Reduce, Taps, WriteSignal, WriteStats

MIX = "mix"
"""Name of the parameter w of the independent connection, among the names of the levels."""


@dataclass(frozen=True)
class CmsOptions:
    """The levels of the Continuum Memory System: what they are, how they are connected, what teaches them."""

    levels: Mapping[str, Level] = FrozenMapping({"cms_fast": Level(16, 1e-3)})  # in chain order; {}: no CMS
    hidden_multiplier: Count = 4  # hidden width of a level over dim
    connection: Literal["sequential", "independent", "nested"] = "sequential"  # Eqs. 70, 74, 72
    norm: Literal["layer", "none"] = "layer"  # of a level's input: LayerNorm | none
    delta_at: Literal["own_output", "block_output"] = "own_output"  # the output whose gradient writes a level
    flush_partial_at_end: bool = False  # write a period that the stream's end cuts short


@dataclass(frozen=True)
class Cms(Memory):
    """The constants of a sequential or independent CMS, whose reads use every parameter.

    levels: in chain order. dim, hidden: D and H of every level. own_output: levels take their own teach
    signal rather than the block's. output_clip: bound on each level's residual branch while training
    (reference style). activation: of the levels' hidden layers, a name of `mlp_memory.ACTIVATIONS`.
    layer_norm: each level norms its input. mixed: the levels are independent: their outputs are averaged with
    learned weights.
    """

    levels: Mapping[str, Level]
    dim: int
    hidden: int
    rules: WriteRules
    own_output: bool = True
    output_clip: float | None = None
    activation: str = "gelu"
    layer_norm: bool = True
    mixed: bool = False

    def entries(self, begin: Initial) -> Entries:
        """See `AnyMemory.entries`: by level."""
        up, down = (self.dim, self.hidden), (self.hidden, self.dim)
        norm = {"ln_scale": (ones, up[:1]), "ln_bias": (zeros, up[:1])}
        biases = {"b_up": (initial.bias(up[0]), up[1:]), "b_down": (initial.bias(down[0]), down[1:])}
        level = {
            **(norm if self.layer_norm else {}),
            "w_up": (begin.matrix(), up),
            "w_down": (begin.matrix(residual=True), down),
            **({} if begin.modern else biases),
        }
        mix = {MIX: (zeros, (len(self.levels),))} if self.mixed else {}
        return {**dict.fromkeys(self.levels, level), **mix}

    def periods(self) -> dict[str, int]:
        """See `AnyMemory.periods`."""
        return {name: level.update_period for name, level in self.levels.items()}

    def taps(self) -> dict[str, tuple[int, int]]:
        """Each level's output, and its hidden layer where the gradient of its write is, token by token, a
        multiple of the read's; () under the block's signal."""
        if not self.own_output:
            return {}
        return {
            name: (self.dim, 0 if self._needs_outputs(level) else self.hidden)
            for name, level in self.levels.items()
        }

    def norms(self, params: PyTree) -> dict[str, tuple[Array, ...]]:
        """See `Memory.norms`."""
        return {name: mlp_memory.group_norms(params[name]) for name in self.levels}

    def flops(self, tokens: int) -> list[Flops]:
        """See `AnyMemory.flops`; every level is one stretch."""
        level = flops.mlp_memory(4.0 * self.dim * self.hidden, pull=not self.own_output)
        return [level] * len(self.levels)

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The state of a context that has written nothing. `params`: one layer's, by level name."""
        return {name: init_level(level, params[name], self.rules) for name, level in self.levels.items()}

    def read(
        self, params: PyTree, fast: dict[str, PyTree] | None, x: Array, taps: dict[str, Taps]
    ) -> tuple[Array, dict[str, Trace]]:
        """x [n, D] -> y [n, D], and each level's trace; see `Memory.read`. A tap of a mixed level stands
        before the average, so the level's own signal has its weight in it."""
        y, trace, outputs = x, {}, []
        for name in self.levels:
            y, trace[name] = mlp_memory.read(
                params[name],
                None if fast is None else fast[name].read_with,
                x if self.mixed else y,
                taps.get(name),
                output_clip=self.output_clip,
                activation=self.activation,
            )
            outputs.append(y)
        if not self.mixed:
            return y, trace
        # In bfloat16 the rounded weights would not sum to 1 and scale the residual stream.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weights = jax.nn.softmax(params[MIX].astype(wide))
        parts = (w * y.astype(wide) for w, y in zip(weights, outputs, strict=True))
        return sum(parts, jnp.zeros((), wide)).astype(x.dtype), trace

    def _needs_outputs(self, level: Level) -> bool:
        """Whether a level's tokens are written by a rule that asks for the level's outputs."""
        return RULES[level.optimizer].at_outputs is not None

    def write(
        self,
        params: PyTree,
        norms: PyTree,
        fast: dict[str, PyTree],
        trace: dict[str, Trace],
        signal: WriteSignal,
        position: Array,
        *,
        reduce: Reduce,
        last: bool = False,
    ) -> tuple[dict[str, PyTree], dict[str, WriteStats]]:
        """Writes every level with one chunk; see `Memory.write`."""
        mask = signal.mask(self.rules.options)
        new_fast: dict[str, PyTree] = {}
        stats: dict[str, WriteStats] = {}
        for name, level in self.levels.items():
            factors = self._factors(params[name], fast[name].delta, trace[name], signal, mask, name)
            tokens = LevelTokens(factors, mask, signal.surprise_n, signal.counted_n)
            new_fast[name], written = self._write_level(
                name, level, params[name], norms[name], fast[name], tokens, position, reduce, last=last
            )
            stats |= written
        return new_fast, stats

    def _factors(
        self, params: PyTree, delta: PyTree, trace: Trace, signal: WriteSignal, mask: Array, name: str
    ) -> WriteFactors:
        """The factors of the gradient that one level writes, zero where mask (bool [n]) is False."""
        if trace.a is not None:
            return mlp_memory.factors_of_read(trace, signal.own[name], mask)
        teach = signal.own[name].output if self.own_output else signal.block
        return mlp_memory.write_factors(
            mlp_memory.fast_weights(params),
            delta,
            trace.z,
            jnp.where(mask[:, None], teach, 0),
            output_clip=self.output_clip,
            activation=self.activation,
        )

    def _write_level(
        self,
        name: str,
        level: Level,
        params: PyTree,
        norms: tuple[Array, ...],
        state: PyTree,
        tokens: LevelTokens,
        position: Array,
        reduce: Reduce,
        *,
        last: bool,
    ) -> tuple[PyTree, dict[str, WriteStats]]:
        """Writes one level: its new state, and statistics under the names of `periods`."""
        writer = LevelWriter(self.rules, level, params, norms, reduce)
        state, stats = writer.write(state, tokens, position, last)
        return state, {name: stats}


ARRAYS: ArrayKinds = (
    ("cms.mix", ("level",), "weights before their softmax, of independently connected levels"),
    ("cms.LEVEL.ln_{scale,bias}", ("dim",), "of a CMS level's LayerNorm; no write changes it"),
    ("cms.LEVEL.w_up", ("dim", "hidden"), "x @ w; what a context's writes start from"),
    ("cms.LEVEL.b_up", ("hidden",), "its bias"),
    ("cms.LEVEL.w_down", ("hidden", "dim"), "x @ w; what a context's writes start from"),
    ("cms.LEVEL.b_down", ("dim",), "its bias"),
)
"""What a CMS is exported as."""
