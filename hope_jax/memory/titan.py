"""TITAN memory: an MLP, normed at its output, that is written towards a SelfModifier's target.

    mem(x) = LN(W_down act(W_up x)),   key = x,   value = stopgrad(mem(key)),
    target = value + SelfModifier(key, value, delta) - delta,   loss = 1/2 sum_t m_t |mem(key_t) - target_t|^2

so the cotangent of a write at mem's output is delta - SelfModifier(key, value, delta): without the
SelfModifier a step along -delta. Written every C tokens like a level of the CMS, with one of its inner
optimizers or the Titans paper's own rule. LayerNorm's affine part is slow. One example and one layer; rows
are tokens.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, zeros

from hope_jax.core import trees
from hope_jax.core.ranges import Count, NonNegative
from hope_jax.core.types import Array, PyTree
from hope_jax.memory import flops, initial, mlp_memory, titans_rule
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import ArrayKinds, Entries, Initial
from hope_jax.memory.level_write import LevelWriter
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import Forward
from hope_jax.memory.period_write import LevelState, LevelTokens, WriteRules
from hope_jax.memory.rules import RULES
from hope_jax.memory.state import Memory, Reduce, Taps, WriteSignal, WriteStats, own
from hope_jax.memory.titans_rule import TitansWriter

SELF_MODIFIER, GATES = "self_modifier", "gates"

LEVEL = "titan"
"""The name of its one level."""

SELF_MODIFIER_SCALE = 1e-3
"""Factor on the SelfModifier's last matrix at the start: its correction is small beside delta."""


@dataclass(frozen=True)
class SelfModifierOptions:
    """The SelfModifier of the TITAN memory (`selfmod_off` ablates it)."""

    enabled: bool = True  # False: a write is a step along the teach signal alone
    clip: NonNegative = 0.0  # per-token bound on its correction over the teach signal's norm; 0: off


@dataclass(frozen=True)
class TitanOptions:
    """The TITAN memory (hope_hybrid, titan)."""

    level: Level = Level(8, 1e-3)  # its period and rule
    hidden_multiplier: Count = 4  # hidden width of the memory and its SelfModifier over dim
    self_modifier: SelfModifierOptions = SelfModifierOptions()


@dataclass(frozen=True)
class Titan(Memory):
    """The constants of a TITAN memory: a memory of the protocol in `hope_jax.memory.state`.

    dim, hidden: D and H. level: its period and inner optimizer; `titans` stands for the Titans paper's
    rule. With self_modifier.clip up to 1 no write goes uphill: <delta - SelfModifier, delta> >= 0. The other
    fields as of `Cms`.

    Parameters of one layer: `w_up` [D, H], `w_down` [H, D], perhaps `b_up`, `b_down`; `ln_scale`,
    `ln_bias` [D]; `self_modifier`: see `self_modifier_read`; `gates`: see `titans_rule.token_gates`.
    """

    level: Level
    dim: int
    hidden: int
    rules: WriteRules
    own_output: bool = True
    output_clip: float | None = None
    activation: str = "gelu"
    self_modifier: SelfModifierOptions = SelfModifierOptions()

    def entries(self, begin: Initial) -> Entries:
        """See `AnyMemory.entries`."""
        up, down = (self.dim, self.hidden), (self.hidden, self.dim)
        # Its output is normed, so the size of a residual branch is set by the norm's scale.
        scale = (2 * begin.num_layers) ** -0.5 if begin.modern else 1.0
        biases = {"b_up": (initial.bias(up[0]), up[1:]), "b_down": (initial.bias(down[0]), down[1:])}
        return {
            "w_up": (begin.matrix(), up),
            "w_down": (begin.matrix(), down),
            "ln_scale": (constant(scale), up[:1]),
            "ln_bias": (zeros, up[:1]),
            **({} if begin.modern else biases),
            **({SELF_MODIFIER: self._modifier_entries(begin)} if self.self_modifier.enabled else {}),
            **({GATES: titans_rule.gate_entries(self.dim)} if self.gated else {}),
        }

    def _modifier_entries(self, begin: Initial) -> Entries:
        """The entries of the SelfModifier; see `self_modifier_read`."""
        widths = (3 * self.dim, self.hidden, self.hidden, self.dim)

        def small(*arguments: Any) -> Array:
            return SELF_MODIFIER_SCALE * begin.matrix()(*arguments)

        entries: dict[str, Any] = {}
        for i in (1, 2, 3):
            shape = widths[i - 1 : i + 1]
            entries[f"w_{i}"] = (small if i == 3 else begin.matrix(), shape)
            if not begin.modern:
                entries[f"b_{i}"] = (zeros if i == 3 else initial.bias(shape[0]), shape[1:])
        return entries

    @property
    def gated(self) -> bool:
        """Whether its tokens have rates of their own."""
        return RULES[self.level.optimizer].gated

    def periods(self) -> dict[str, int]:
        """The memory is one level."""
        return {LEVEL: self.level.update_period}

    def without_gradient(self, tokens: int) -> tuple[str, ...]:
        """SelfModifier and gates act through writes alone: both if no write is read again, the former if they
        are steps of size 0 (the gates still decay)."""
        unread = max(self.level.update_period, self.rules.chunk_size) >= tokens
        modifier = self.self_modifier.enabled and (unread or not self.level.lr)
        return ((SELF_MODIFIER,) if modifier else ()) + ((GATES,) if self.gated and unread else ())

    def taps(self) -> dict[str, tuple[int, int]]:
        """Its own output, if it learns from that; a write has another cotangent than the read."""
        return {LEVEL: (self.dim, 0)} if self.own_output else {}

    def norms(self, params: PyTree) -> tuple[Array, ...]:
        """See `Memory.norms`."""
        return mlp_memory.group_norms(params)

    def flops(self, tokens: int) -> list[Flops]:
        """See `AnyMemory.flops`. A write also reads the SelfModifier, and `online` differentiates through the
        write to it: cotangents of both factors of the outer products, through the pull back, and of the
        SelfModifier's matrices and hidden layers."""
        memory = flops.mlp_memory(
            4.0 * self.dim * self.hidden, pull=self.self_modifier.enabled or not self.own_output
        )
        if not self.self_modifier.enabled:
            return [memory]
        inputs, rest = 6.0 * self.dim * self.hidden, 2.0 * self.hidden * (self.hidden + self.dim)
        learning = 1.5 * memory.forward + inputs + 2 * rest
        backward = 0.0 if self.without_gradient(tokens) else learning
        return [memory._replace(write=memory.write + inputs + rest, write_backward=backward)]

    def init(self, params: PyTree) -> dict[str, LevelState]:
        """The state of a context that has written nothing, for parameters of one layer."""
        return {LEVEL: self._writer(params, (), own).init()}

    def _writer(self, params: PyTree, norms: tuple[Array, ...], reduce: Reduce) -> TitansWriter | LevelWriter:
        kind = TitansWriter if self.gated else LevelWriter
        return kind(self.rules, self.level, params, norms, reduce)

    def read(
        self, params: PyTree, fast: dict[str, LevelState] | None, x: Array, taps: dict[str, Taps]
    ) -> tuple[Array, Forward]:
        """x [n, D] -> mem(x) [n, D], and the MLP's steps; see `Memory.read`."""
        delta = None if fast is None else fast[LEVEL].read_with
        read = mlp_memory.forward(mlp_memory.fast_weights(params), delta, x, self.activation)
        y = self._normed(params, read.o).astype(x.dtype)
        if LEVEL in taps:
            y = y + taps[LEVEL].output.astype(y.dtype)
        return y, read

    def _normed(self, params: PyTree, o: Array) -> Array:
        """The memory's output [n, D] from that of its MLP."""
        branch = o if self.output_clip is None else o * mlp_memory.clip_factor(o, self.output_clip)
        return mlp_memory.normalise(params, branch)

    def write(
        self,
        params: PyTree,
        norms: PyTree,
        fast: dict[str, LevelState],
        trace: Forward,
        signal: WriteSignal,
        position: Array,
        *,
        reduce: Reduce,
        last: bool = False,
    ) -> tuple[dict[str, LevelState], dict[str, WriteStats]]:
        """Writes one chunk; see `Memory.write`."""
        state, weights = fast[LEVEL], mlp_memory.fast_weights(params)
        mask = signal.mask(self.rules.options)
        teach = signal.own[LEVEL].output if self.own_output else signal.block
        value, pull = jax.vjp(lambda o: self._normed(params, o), trace.o)
        cotangent = teach
        if self.self_modifier.enabled:
            correction = self_modifier_read(params[SELF_MODIFIER], trace.z, value, teach).astype(teach.dtype)
            cotangent = teach - shorten(correction, teach, self.self_modifier.clip)
        (at_output,) = pull(jnp.where(mask[:, None], cotangent, 0).astype(value.dtype))
        factors = mlp_memory.write_factors(
            weights, state.delta, trace.z, at_output, trace, activation=self.activation
        )
        gates = titans_rule.token_gates(params[GATES], trace.z, self.level.lr) if self.gated else ()
        tokens = LevelTokens(factors, mask, signal.surprise_n, signal.counted_n, gates)
        new, stats = self._writer(params, norms, reduce).write(state, tokens, position, last)
        return {LEVEL: new}, {LEVEL: stats}


def shorten(correction: Array, teach: Array, bound: float) -> Array:
    """Shortens the correction [n, D] of each token to at most bound |delta|; bound 0 leaves it as it is."""
    if not bound:
        return correction
    allowed = bound * trees.safe_norm(teach, axis=-1, keepdims=True)
    size = trees.safe_norm(correction, axis=-1, keepdims=True)
    over = size > allowed
    return jnp.where(over, correction * allowed / jnp.where(over, size, 1), correction)


@jax.named_scope("self_modifier")
def self_modifier_read(params: dict[str, Array], key: Array, value: Array, teach: Array) -> Array:
    """The correction [n, D] that a 3-layer MLP with GELU makes of [key, value, delta], [n, D] each.

    params: `w_1` [3D, H], `w_2` [H, H], `w_3` [H, D] and perhaps biases `b_1`, `b_2`, `b_3`.
    """
    dtype = key.dtype
    h = jnp.concatenate([key, value.astype(dtype), teach.astype(dtype)], axis=-1)
    for i in (1, 2, 3):
        h = h @ params[f"w_{i}"].astype(dtype)
        if f"b_{i}" in params:
            h = h + params[f"b_{i}"].astype(dtype)
        if i < 3:
            h = mlp_memory.gelu(h)
    return h


ARRAYS: ArrayKinds = (
    ("titan_scale", ("dim",), "of the norm before the TITAN memory"),
    ("titan.w_up", ("dim", "hidden"), "x @ w; what a context's writes start from"),
    ("titan.b_up", ("hidden",), "its bias"),
    ("titan.w_down", ("hidden", "dim"), "x @ w; what a context's writes start from"),
    ("titan.b_down", ("dim",), "its bias"),
    ("titan.ln_{scale,bias}", ("dim",), "of the LayerNorm at the TITAN memory's output"),
    ("titan.self_modifier.w_{1,2,3}", ("in", "out"), "x @ w; w_1 reads [key, value, delta]"),
    ("titan.self_modifier.b_{1,2,3}", ("out",), "their biases"),
    ("titan.gates.w_{alpha,eta,theta}", ("dim",), "Titans rule: decay, momentum, rate"),
    ("titan.gates.b_{alpha,eta,theta}", (), "their biases"),
)
"""What a TITAN memory is exported as."""
