"""A tiny linear model behind the `TrainProgram` interface, and a JSON-able iterator for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.training.program import TrainProgram, TrainState
from hope_jax.types import NO_TARGET, Batch

VOCAB, ROWS, LENGTH = 8, 2, 12


class ToyTokenizer:
    sha256 = "toy"

    def decode(self, ids):
        return "".join(chr(ord("a") + i) if i else "<" for i in ids)


class ToyIterator:
    """Batch n is a function of n alone."""

    def __init__(self, start=0):
        self.next_batch = start

    def __next__(self):
        batch = toy_batch(self.next_batch)
        self.next_batch += 1
        return batch

    def get_state(self):
        return {"next_batch": self.next_batch}

    def set_state(self, state):
        self.next_batch = state["next_batch"]


def toy_batch(number):
    rng = np.random.default_rng(number)
    tokens = rng.integers(1, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    targets = ((tokens * 3 + 1) % VOCAB).astype(np.int32)
    targets[:, -1] = NO_TARGET
    return Batch(tokens, targets, np.ones_like(tokens))


def toy_program(*, width=6, bad_step=None, bad_state_step=None, memories=True, step_hook=None, layers=2):
    """`bad_step`: loss and gradient are NaN there. `bad_state_step`: only the new parameters are."""
    optimizer = optax.adam(1e-1)

    def fresh():
        keys = jax.random.split(jax.random.key(0))
        params = {
            "embed": 0.3 * jax.random.normal(keys[0], (VOCAB, width)),
            "head": 0.3 * jax.random.normal(keys[1], (width, VOCAB)),
        }
        rng = jax.random.key_data(jax.random.key(1))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), (), rng)

    def loss_sum(params, batch):
        logits = params["embed"][batch.tokens] @ params["head"]
        mask = batch.targets != NO_TARGET
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mask, batch.targets, 0))
        return jnp.sum(each * mask), jnp.sum(mask).astype(jnp.float32)

    def train_step(state, batch):
        def mean(params):
            total, tokens = loss_sum(params, batch)
            return total / tokens, tokens

        (loss, tokens), grads = jax.value_and_grad(mean, has_aux=True)(state.params)
        step = state.step + 1
        rng = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(state.rng))[0])
        noise = 1e-3 * jax.random.normal(jax.random.wrap_key_data(rng), ())
        loss = jnp.where(step == (bad_step or -1), jnp.nan, loss)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = jax.tree.map(lambda p, u: p + u * (1 + noise), state.params, updates)
        params = jax.tree.map(lambda p: jnp.where(step == (bad_state_step or -1), jnp.nan, p), params)
        norm = optax.global_norm(grads)
        growing = jnp.exp(jnp.maximum(step - 4, 0).astype(jnp.float32)) * jnp.ones(layers)
        writes = {
            "cms_fast": {"grad_norm": growing, "gate_hit": jnp.ones(layers), "surprise_value": jnp.full(layers, jnp.nan)},
            "cms_slow": {"grad_norm": jnp.ones(layers), "updates_applied": 3 * jnp.ones(layers)},
        }  # fmt: skip
        metrics = {
            "loss": loss, "tokens": tokens, "grad_norm": norm, "lr": jnp.float32(0.1), "teach_signal_norm": norm,
            "writes": writes if memories else {},
        }  # fmt: skip
        return TrainState(step, params, opt_state, (), rng), metrics

    def eval_step(state, batch):
        total, tokens = loss_sum(state.params, batch)
        return {"loss_sum": total, "loss_sum_no_writes": total * 1.1, "tokens": tokens}

    compiled = jax.jit(train_step, donate_argnums=0)

    def hooked(state, batch):
        if step_hook:
            step_hook()
        return compiled(state, batch)

    def generate(state, prompt, max_tokens, temperature, seed):
        return (np.arange(max_tokens) % VOCAB).astype(np.int32)

    return TrainProgram(jax.jit(fresh), hooked, jax.jit(eval_step), generate, ("toy <note>",), 96.0)
