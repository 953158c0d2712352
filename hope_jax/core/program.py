"""What the training loop drives: compiled functions over one explicit state, and nothing else.

The loop, the hooks and the checkpoints know a run only through these types, so they can be tested with a
toy program, and a new variant or mode reaches them without a change.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hope_jax.core.types import Array, Batch, PyTree


class TrainState(NamedTuple):
    """All that a step reads and writes; every leaf is an array.

    step: int32 [] number of the last step done (0 from `init`; the loop adds `train.step_offset`).
    params: meta parameters.
    opt_state: state of the outer optimizer.
    fast: persistent fast state (memory.lifetime="persistent"), else an empty tuple.
    rng: uint32 [2] key data of the run's random stream, which no mechanism draws from so far.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    fast: PyTree
    rng: Array


class TrainProgram(NamedTuple):
    """The compiled pieces of one run.

    init: () -> TrainState, deterministic in the config's seed.
    train_step: (state, batch) -> (state, metrics). Donates the state. `metrics` holds device scalars, in
        JAX's default float: `loss` (mean cross-entropy in nats per supervised token), `tokens`
        (supervised tokens), `grad_norm` (before the clip), `lr`, `teach_signal_norm`, and `writes`: level
        name -> statistic -> [L] (one value a layer; an empty mapping for variants without memories).
    eval_step: (state, batch) -> {"loss_sum", "loss_sum_no_writes", "tokens"}: float32 device scalars,
        summed over the batch's supervised tokens, with memory writes and without (left out where no read
        sees a write), and `writes`: level name -> {"periods", "updates_applied", "surprise_value"} -> [L],
        summed over the batch's rows (empty where an evaluation writes nothing).
    generate: (state, prompt int32 [P], max_tokens, temperature, seed) -> int32 [<= max_tokens].
    notes: lines to log at the start (parameter split, excluded parameters, warnings).
    flops_per_token: useful FLOPs of a train step per token, for the share of the machine's peak.
    """

    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, PyTree]]]
    eval_step: Callable[[TrainState, Batch], Mapping[str, PyTree]]
    generate: Callable[[TrainState, np.ndarray, int, float, int], np.ndarray]
    notes: tuple[str, ...]
    flops_per_token: float
