"""Fine-tuning as the alternative to memories: the slow parameters, one pass, AdamW."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import NO_TARGET, Array, Batch, PyTree
from hope_jax.evals.reading.reader import Reader, of_documents, packed, start_of
from hope_jax.evals.reading.scoring import padded, up
from hope_jax.learning.chunk import read_loss
from hope_jax.models.lm import HopeModel

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)

_OPTIMIZER = optax.inject_hyperparams(optax.adamw)(learning_rate=0.0)
"""optax's AdamW with its own constants; the rate is part of the state, so all rates compile once."""


class Tuned(NamedTuple):
    """Parameters and the optimizer's state after some rows."""

    params: PyTree
    state: Any


@dataclass(frozen=True)
class Tuner:
    """Steps along the loss of rows that are read with memories as they stand; nothing is written. tokens: of
    a training row, one step each, into which short documents are packed."""

    reader: Reader
    tokens: int

    def begin(self, params: PyTree, learning_rate: float) -> Tuned:
        """Before the first row."""
        state = _OPTIMIZER.init(params)
        state.hyperparams["learning_rate"] = jnp.asarray(learning_rate)
        return Tuned(params, state)

    def read_on(self, tuned: Tuned, rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Tuned]:
        """One step for each training row, in order; log p of each token of each row, float64 [n], under the
        parameters before its step, and what came out."""
        found: list[np.ndarray] = []
        for batch in self._batches(rows):
            left = self.reader.trained, self.reader.initial
            loss, params, state = _step(self.reader.model, tuned.params, tuned.state, left, batch)
            tuned = Tuned(params, state)
            log_probs = -np.asarray(loss, np.float64)[0]
            found += of_documents(log_probs, np.asarray(batch.segment_ids)[0])
        return found, tuned

    def _batches(self, rows: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Rows int32 [1, T] with targets."""
        tokenizer = self.reader.tokenizer
        for tokens, segments in packed(rows, tokenizer.bos_id, self.tokens):
            width = up(len(tokens), self.tokens)
            row, _ = padded([tokens], width, tokenizer.pad_id)
            documents, _ = padded([segments], width, 0)
            targets = np.full((1, width), NO_TARGET, np.int32)
            same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
            targets[:, :-1] = np.where(same, row[:, 1:], NO_TARGET)
            yield Batch(*map(jnp.asarray, (row, targets, documents)))


def learning_rates(options: Any) -> tuple[float, ...]:
    """The option `learning_rates`. Raises: ConfigError."""
    rates = options.get("learning_rates", LEARNING_RATES)
    good = isinstance(rates, list | tuple) and rates
    if not good or any(isinstance(r, bool) or not isinstance(r, int | float) or not 0 < r < 1 for r in rates):
        raise ConfigError(f"learning_rates={rates!r}: want a list of numbers between 0 and 1")
    return tuple(float(rate) for rate in rates)


def best_rate(losses: Mapping[float, float]) -> float:
    """The learning rate of the least loss; one that diverged is the worst, as NaN compares with nothing."""
    return min(losses, key=lambda rate: np.nan_to_num(losses[rate], nan=np.inf))


@partial(jax.jit, static_argnums=0)
def _step(
    model: HopeModel, params: PyTree, state: Any, left: tuple[PyTree, PyTree | None], batch: Batch
) -> tuple[Array, PyTree, Any]:
    """left: what training has left, as `start_of` takes it."""

    def mean_loss(params: PyTree) -> tuple[Array, Array]:
        # Memories held as whole weights begin at the parameters, which so are trained through them.
        out = model.read(params, start_of(model, params, *left), None, batch.tokens, batch.segment_ids)
        losses = read_loss(params, out, batch.targets)
        return losses.total / jnp.maximum(losses.supervised_bt.sum(), 1), losses.loss_bt

    gradient, loss = jax.grad(mean_loss, has_aux=True)(params)
    updates, state = _OPTIMIZER.update(gradient, state, params)
    return loss, optax.apply_updates(params, updates), state
