"""Continuum Memory System: a chain of MLP levels, each written every C tokens (Eqs. 70-71, SPEC §2.1).

y = MLP_k(... MLP_1(x)). Level l with period C is written at token counts that are multiples of C with

    theta_l <- theta_l - eta_l u,   u = inner optimizer of  sum_t m_t d<stopgrad(delta_t), y_t>/dtheta_l

over exactly its last C tokens, all gradients at the weights that read those tokens. One example and one
layer; rows are tokens. The slow weights theta never change here: a write changes `delta`.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from hope_jax.memory import gate, mlp_memory
from hope_jax.memory.level_write import Bounds, LevelState, LevelWriter, WriteRules, init_level
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats
from hope_jax.types import Array, PyTree

__all__ = ["Bounds", "Cms", "LevelState"]


@dataclass(frozen=True)
class Cms:
    """The constants of a CMS: a memory of the protocol in `hope_jax.memory.state`.

    levels: in chain order. chunk_size: tokens of an online chunk (N). own_output: levels take their own
    teach signal rather than the block's. output_clip: bound on each level's residual branch while
    training (reference style). flush_partial_at_end: write unfinished periods when a stream ends.
    """

    levels: tuple[LevelSpec, ...]
    chunk_size: int
    gate_rule: gate.GateRule = gate.GateRule()
    bounds: Bounds = Bounds()
    own_output: bool = True
    output_clip: float | None = None
    flush_partial_at_end: bool = False

    @property
    def write_only(self) -> tuple[str, ...]:
        """No parameter acts through writes alone."""
        return ()

    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, in chain order."""
        return tuple(spec.name for spec in self.levels)

    def taps(self) -> tuple[str, ...]:
        """Levels whose own output cotangent is wanted."""
        return self.level_names() if self.own_output else ()

    def init(self, params: PyTree) -> dict[str, LevelState]:
        """The state of a context that has written nothing. `params`: one layer's, by level name."""
        return {spec.name: init_level(spec, params[spec.name], self.chunk_size) for spec in self.levels}

    def read(
        self, params: PyTree, fast: dict[str, LevelState] | None, x: Array, taps: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """x [n, D] -> y [n, D], and each level's own input.

        fast None reads the slow weights alone. taps: level name -> [n, D], added to that level's output:
        zeros, whose gradient is the level's teach signal.
        """
        trace = {}
        for spec in self.levels:
            trace[spec.name] = x
            delta = None if fast is None else fast[spec.name].delta
            x = mlp_memory.read(params[spec.name], delta, x, output_clip=self.output_clip)
            if spec.name in taps:
                x = x + taps[spec.name].astype(x.dtype)
        return x, trace

    def write(
        self,
        params: PyTree,
        fast: dict[str, LevelState],
        trace: dict[str, Array],
        signal: WriteSignal,
        *,
        position: Array,
        reduce: Reduce,
        last: bool = False,
    ) -> tuple[dict[str, LevelState], dict[str, WriteStats]]:
        """Writes every level with one chunk; see `Memory.write`."""
        rules = WriteRules(self.chunk_size, self.gate_rule, self.bounds, self.flush_partial_at_end)
        mask = gate.token_mask(self.gate_rule, signal.surprise_n, signal.active_n)
        new_fast, stats = {}, {}
        for spec in self.levels:
            name = spec.name
            teach = signal.own[name] if self.own_output else signal.block
            factors = mlp_memory.write_factors(
                params[name],
                fast[name].delta,
                trace[name],
                jnp.where(mask[:, None], teach, 0),
                output_clip=self.output_clip,
            )
            writer = LevelWriter(rules, spec, params[name], reduce)
            new_fast[name], stats[name] = writer.write(fast[name], factors, mask, signal, position, last)
        return new_fast, stats
