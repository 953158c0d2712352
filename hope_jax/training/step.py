"""The compiled pieces of a run: initial state, train step, evaluation, sampling."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from hope_jax.config import ExperimentConfig
from hope_jax.errors import ConfigError
from hope_jax.learning import optim
from hope_jax.learning.generate import make_generate
from hope_jax.learning.loss import read_loss
from hope_jax.learning.online import OnlineRule, Sums, stream_loss
from hope_jax.learning.outer_gradient import online_gradients
from hope_jax.learning.slow_read import slow_loss
from hope_jax.learning.through_writes import through_writes_gradients
from hope_jax.learning.two_pass import read_pass
from hope_jax.memory.state import WriteStats
from hope_jax.models.lm import HopeModel
from hope_jax.training import assemble
from hope_jax.training.program import TrainProgram, TrainState
from hope_jax.training.sharding import DATA_AXIS, make_mesh, replicated, shard_batch, shard_whole_batch
from hope_jax.types import Array, Batch, PyTree

Metrics = dict[str, PyTree]


class Step:
    """The pure step functions of one configuration.

    mesh: devices over which the batch is split; None: one device, or as the compiler likes.
    """

    def __init__(self, config: ExperimentConfig, mesh: Mesh | None = None) -> None:
        self.config = config
        self.mesh = mesh
        self.model = HopeModel(assemble.step_spec(config))
        self.rule: OnlineRule = assemble.online_rule(config)
        self.schedule = assemble.teach_schedule(config)
        self.optim_rule = assemble.optim_rule(config)
        self.persistent = config.memory.lifetime == "persistent"
        self.mode = config.train.algorithm_mode
        self.streams = self.mode != "two_pass"
        self.untrained = self._without_gradient()
        self.optimizer = optim.make_optimizer(self.optim_rule, self.untrained)

    def init(self) -> TrainState:
        """The state of step 0; deterministic in `train.seed`. A relaunch adds its offset to the step."""
        init_key, run_key = jax.random.split(jax.random.key(self.config.train.seed))
        params = self.model.init_params(init_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            fast=self.model.init_fast_state(params, 1) if self.persistent else (),
            rng=jax.random.key_data(run_key),
        )

    def _without_gradient(self) -> tuple[str, ...]:
        """Paths of the parameters that act through writes alone, where no read of a step sees a write."""
        tokens, taught = self.config.data.seq_len, self.streams and self.rule.teach.scale > 0
        names = {
            name: memory.without_gradient(tokens) if taught else memory.write_only
            for name, memory in self.model.memories().items()
        }
        names |= {name: m.without_gradient(tokens) for name, m in self.model.stream_memories().items()}
        there = jax.eval_shape(self.model.init_params, jax.random.key(0))["blocks"]
        return tuple(f"blocks/{name}/{key}" for name in names for key in names[name] if key in there[name])

    def _start(self, state: TrainState, batch: Batch) -> PyTree:
        if self.persistent:
            return state.fast
        return self.model.init_fast_state(state.params, batch.tokens.shape[0])

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One outer step."""
        mode = self._train_stream if self.streams else self._train_two_pass
        return mode(state, batch, self.schedule(state.step))

    def _train_stream(self, state: TrainState, batch: Batch, schedule: Array) -> tuple[TrainState, Metrics]:
        gradient, sums, stats = self._stream_gradient()(state.params, batch, schedule)
        new_state, grad_norm = self._outer_step(state, gradient, sums)
        return new_state, self._metrics(state, sums, grad_norm, stats)

    def _stream_gradient(self) -> Callable[[PyTree, Batch, Array], tuple[PyTree, Sums, PyTree]]:
        """(params, batch, schedule) -> the outer gradient and the sums over the batch, and the statistics of
        the writes. Where examples do not see each other, each device adds up its own, and they meet once a
        step; left to the compiler they would meet in every layer of every online chunk."""
        gradients = through_writes_gradients if self.mode == "through_writes" else online_gradients

        def own(params: PyTree, batch: Batch, schedule: Array) -> tuple[PyTree, Sums, PyTree]:
            fast = self.model.init_fast_state(params, batch.tokens.shape[0])
            gradient, result = gradients(self.model, self.rule, params, fast, batch, schedule)
            return gradient, result.sums, result.stats

        def summed(params: PyTree, batch: Batch, schedule: Array) -> tuple[PyTree, Sums, PyTree]:
            gradient, sums, stats = own(params, batch, schedule)
            return *jax.lax.psum((gradient, sums), DATA_AXIS), stats

        together = self.model.spec.scope == "batch" or self.rule.teach.batch_mean
        if self.mesh is None or self.mesh.size == 1 or together:
            return own
        everywhere, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
        return jax.shard_map(
            summed,
            mesh=self.mesh,
            in_specs=(everywhere, rows, everywhere),
            out_specs=(everywhere, everywhere, PartitionSpec(None, DATA_AXIS)),
            check_vma=False,
        )

    def _train_two_pass(self, state: TrainState, batch: Batch, schedule: Array) -> tuple[TrainState, Metrics]:
        fast = self._start(state, batch)
        # Fresh memories have written nothing: a read of their deltas would multiply zeros.
        read_with = fast if self.persistent else {name: fast[name] for name in self.model.stream_memories()}
        seen = state.step - self.config.train.step_offset if self.persistent else jnp.zeros((), jnp.int32)
        gradient, pending, read = read_pass(
            self.model, self.rule, state.params, read_with, batch, schedule, seen * batch.tokens.shape[1]
        )
        new_state, grad_norm = self._outer_step(state, gradient, read.sums)
        fast, stats = self.model.write(
            state.params,
            {**fast, **read.fast},
            *pending,
            last=not self.persistent,
            training=self.rule.training,
        )
        if self.persistent:
            new_state = new_state._replace(fast=self.model.move(state.params, new_state.params, fast))
        return new_state, self._metrics(state, read.sums, grad_norm, {**read.stats, **stats})

    @jax.named_scope("outer_step")
    def _outer_step(self, state: TrainState, gradient: PyTree, sums: Sums) -> tuple[TrainState, Array]:
        """Steps the meta parameters along the mean gradient per supervised token; also its norm."""
        mean = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1).astype(g.dtype), gradient)
        updates, opt_state = self.optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        return new_state, optax.global_norm(mean)

    def _metrics(self, state: TrainState, sums: Sums, grad_norm: Array, stats: PyTree) -> Metrics:
        scalars = {
            "loss": sums.loss / jnp.maximum(sums.tokens, 1),
            "tokens": sums.tokens,
            "grad_norm": grad_norm,
            "lr": self.optim_rule.lr * optim.lr_fraction(self.optim_rule)(state.step),
            "teach_signal_norm": sums.teach_norm / jnp.maximum(sums.teach_tokens, 1),
        }
        metrics: Metrics = {name: value.astype(jnp.float32) for name, value in scalars.items()}
        metrics["writes"] = {
            level: describe_writes(level_stats)
            for levels in stats.values()
            for level, level_stats in levels.items()
        }
        return metrics

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Summed held-out loss with the memories writing, and with their slow weights alone."""
        rule = self.rule._replace(training=False)
        fast = self._start(state, batch)
        plain = slow_loss(self.model, state.params, batch)
        written = self.streams or self.persistent or bool(self.model.stream_memories())
        if not self.model.level_names() or not written:
            with_writes = plain
        elif self.streams:
            with_writes = stream_loss(self.model, rule, state.params, fast, batch).sums.loss
        else:
            with_writes = self._read_loss(state.params, fast, batch)
        supervised = token_loss_count(batch)
        return {"loss_sum": with_writes, "loss_sum_no_writes": plain, "tokens": supervised}

    def _read_loss(self, params: PyTree, fast: PyTree, batch: Batch) -> Array:
        out = self.model.read(params, fast, None, batch.tokens, batch.segment_ids)
        return read_loss(self.model, params, out, batch.targets).total


def token_loss_count(batch: Batch) -> Array:
    """Supervised tokens of a batch, float32 []."""
    return (batch.targets >= 0).sum().astype(jnp.float32)


def describe_writes(stats: WriteStats) -> Mapping[str, Array]:
    """Per layer [L]: counts a context, `grad_norm` an applied write, `surprise_value` a period."""
    total = jax.tree.map(lambda t: t.mean(1), stats)
    described = total._asdict()
    described["grad_norm"] = total.grad_norm / jnp.maximum(total.updates_applied, 1e-9)
    described["surprise_value"] = total.surprise_value / jnp.maximum(total.periods, 1e-9)
    return described


def jit_train(step: Step, mesh: Mesh) -> Any:
    """`step.train` over a mesh, as training runs it and `hope_jax.plan` compiles it: batch split by example,
    state donated and left on every device."""
    return jax.jit(step.train, donate_argnums=0, out_shardings=replicated(mesh))


def build_program(config: ExperimentConfig, vocab_size: int) -> TrainProgram:
    """Compiles (lazily) the pieces that the training loop drives.

    vocab_size: of the tokenizer.

    Raises:
      ConfigError: the tokenizer has more tokens than `model.vocab_size`.
    """
    if vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's {vocab_size} "
            f"tokens; set --config.model.vocab_size={vocab_size} or larger"
        )
    mesh = make_mesh()
    step = Step(config, mesh)
    everywhere = replicated(mesh)
    init = jax.jit(step.init, out_shardings=everywhere)
    train = jit_train(step, mesh)
    evaluate = jax.jit(step.evaluate, out_shardings=everywhere)
    sample = make_generate(assemble.streamer(config))

    def generate(
        state: TrainState, prompt: np.ndarray, max_tokens: int, temperature: float, seed: int
    ) -> np.ndarray:
        # One device samples: its own copy of the replicated parameters, without the mesh.
        params, fast = jax.tree.map(lambda leaf: leaf.addressable_data(0), (state.params, state.fast))
        return sample(params, fast if step.persistent else None, prompt, max_tokens, temperature, seed)

    shapes = jax.eval_shape(step.init)
    return TrainProgram(
        init=init,
        train_step=lambda state, batch: train(state, shard_batch(mesh, batch)),
        eval_step=lambda state, batch: evaluate(state, shard_whole_batch(mesh, batch)),
        generate=generate,
        notes=(optim.describe_groups(step.optim_rule, shapes.params, step.untrained),),
        flops_per_token=assemble.flops_per_token(config),
    )
