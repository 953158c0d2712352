"""A tiny linear model behind the `TrainProgram` interface, an iterator for it, and how to train it."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.config.experiment import (
    CheckpointConfig,
    EvalConfig,
    ExperimentConfig,
    LogConfig,
    TrainConfig,
)
from hope_jax.core.files import METRICS_FILE, read_rows
from hope_jax.core.program import TrainProgram, TrainState
from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.models.spec import Architecture
from hope_jax.training.loop import train

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


class Interrupt(Exception):
    """Stands for a crash."""


def toy_config(steps=20, **changes):
    """Logs every 4 steps, evaluates every 10, saves every 8; `changes` replace whole sections."""
    config = ExperimentConfig(
        model=Architecture(dim=6),
        train=TrainConfig(steps=steps),
        eval=EvalConfig(every=10, generate_tokens=4),
        checkpoint=CheckpointConfig(every=8),
        log=LogConfig(every=4, tensorboard=False),
    )
    return replace(config, **changes)


def toy_train(workdir, config=None, program=None, on_step=None):
    """`train` on toy data; `on_step(number)` is called before each step of this start."""
    config, program = config or toy_config(), program or toy_program()
    if on_step:
        program = with_hook(program, on_step)
    held_out = [toy_batch(1000), toy_batch(1001)]
    iterator = ToyIterator(config.train.step_offset)
    return train(program, config, workdir, iterator, held_out, ToyTokenizer())


def with_hook(program, on_step):
    count = iter(range(1, 10**9))

    def train_step(state, batch):
        on_step(next(count))
        return program.train_step(state, batch)

    return program._replace(train_step=train_step)


def rows_of(workdir):
    """The rows without what a clock decides."""
    timed = ("tokens_per_sec", "step_time")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(workdir / METRICS_FILE)]


def without_memories(program):
    """The program with no write statistics, of whose losses one is enough."""

    def train_step(state, batch):
        state, metrics = program.train_step(state, batch)
        return state, {**metrics, "writes": {}}

    def eval_step(state, batch):
        sums = {**program.eval_step(state, batch), "writes": {}}
        return {key: value for key, value in sums.items() if key != "loss_sum_no_writes"}

    return program._replace(train_step=train_step, eval_step=eval_step)


def poisoned(program, *, loss_at=0, params_at=0):
    """The program with a NaN in place of the loss, or in the new parameters, of one step."""
    count = iter(range(1, 10**9))

    def train_step(state, batch):
        number = next(count)
        state, metrics = program.train_step(state, batch)
        if number == loss_at:
            metrics = {**metrics, "loss": metrics["loss"] * jnp.nan}
        if number == params_at:
            state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
        return state, metrics

    return program._replace(train_step=train_step)


@functools.cache
def toy_program(*, width=6, layers=2):
    """Memories grow without bound after step 4, on paper: `grad_norm` of `cms_fast` does."""
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
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = jax.tree.map(lambda p, u: p + u * (1 + noise), state.params, updates)
        norm = optax.tree.norm(grads)
        growing = jnp.exp(jnp.maximum(step - 4, 0).astype(jnp.float32)) * jnp.ones(layers)
        writes = {
            "cms_fast": {"grad_norm": growing, "surprise_value": jnp.full(layers, jnp.nan)},
            "cms_slow": {"grad_norm": jnp.ones(layers), "updates_applied": 3 * jnp.ones(layers)},
        }
        metrics = {"loss": loss, "tokens": tokens, "grad_norm": norm, "lr": jnp.float32(0.1)}
        metrics |= {"teach_signal_norm": norm, "writes": writes}
        return TrainState(step, params, opt_state, (), rng), metrics

    def eval_step(state, batch):
        total, tokens = loss_sum(state.params, batch)
        ended = {"periods": 4 * jnp.ones(layers), "surprise_value": 2 * jnp.ones(layers)}
        writes = {"cms_fast": {**ended, "updates_applied": jnp.arange(layers) + 2.0}}
        return {"loss_sum": total, "loss_sum_no_writes": total * 1.1, "tokens": tokens, "writes": writes}

    compiled = jax.jit(train_step, donate_argnums=0)

    def generate(state, prompt, max_tokens, temperature, seed):
        return (np.arange(max_tokens) % VOCAB).astype(np.int32)

    return TrainProgram(jax.jit(fresh), compiled, jax.jit(eval_step), generate, ("toy <note>",), 96.0)
