"""The compiled pieces of a run: initial state, train step, evaluation, sampling."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from hope_jax.cluster import sharding
from hope_jax.cluster.sharding import DATA_AXIS, WHOLE, make_mesh, whole
from hope_jax.config import assemble
from hope_jax.config.chunks import has_memories, has_part
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core import trees
from hope_jax.core.errors import ConfigError
from hope_jax.core.program import TrainProgram, TrainState
from hope_jax.core.types import Array, Batch, PyTree
from hope_jax.kernels import attention
from hope_jax.learning import sampling
from hope_jax.learning.chunk import OnlineRule, Sums, read_loss, stream_loss
from hope_jax.learning.modes import MODES
from hope_jax.memory.state import WriteStats
from hope_jax.models import blocks
from hope_jax.models.lm import HopeModel
from hope_jax.optim import outer as optim

logger = logging.getLogger("hope_jax.training")

Metrics = dict[str, PyTree]

EVALUATED_WRITES = ("periods", "updates_applied", "surprise_value")
"""Of an evaluation's writes: fields of `WriteStats` that are summed over its examples."""


class Learnt(NamedTuple):
    """What one batch teaches. gradient: of the sum of cross-entropies. writes: by memory and level,
    `WriteStats` summed over the examples, leaves [L]. fast: what persists, at the old parameters, else ()."""

    gradient: PyTree
    sums: Sums
    writes: PyTree
    fast: PyTree


class Step:
    """The pure step functions of one configuration.

    Everything that a batch decides is mapped over the devices by `shard_map`: each reads and writes its own
    examples, and they meet once a step, to add up gradient and sums; where examples share a fast state also
    in its writes. Left to the compiler they would meet in every layer of every online chunk.

    mesh: devices over which the batch is split; None: one device.
    """

    def __init__(self, config: ExperimentConfig, mesh: Mesh | None = None) -> None:
        self.config = config
        self.mesh = None if mesh is None or mesh.size == 1 else mesh
        across = (DATA_AXIS,) if self.mesh else ()
        self.model = HopeModel(dataclasses.replace(assemble.model_spec(config), across=across))
        rule: OnlineRule = assemble.online_rule(config)
        self.rule = rule._replace(across=across)
        self.schedule = config.teach.schedule
        self.optim_rule = assemble.optim_rule(config)
        self.persistent = config.memory.lifetime == "persistent"
        self.mode = config.train.algorithm_mode
        self.streams = self.mode != "two_pass"
        self.untrained = self._without_gradient()
        fsdp = config.train.fsdp
        spread = sharding.stack_shardings(self.mesh, split_at_rest=fsdp) if self.mesh else None
        self.optimizer = optim.make_optimizer(self.optim_rule, self.untrained, spread)
        shares = self.mesh.size if self.mesh and fsdp else 1
        # how each array of the state is split over the devices
        self.specs: TrainState = sharding.shared(jax.eval_shape(self.init), shares)

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
            name: memory.without_gradient(tokens if taught else 1)
            for name, memory in self.model.memories().items()
        }
        names |= {name: m.without_gradient(tokens) for name, m in self.model.stream_memories().items()}
        there = jax.eval_shape(self.model.init_params, jax.random.key(0))["blocks"]
        return tuple(f"blocks/{name}/{key}" for name in names for key in names[name] if key in there[name])

    def _everywhere(self, function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
        """`function` of (parameters, persistent fast state, batch, *what all devices know), mapped over the
        devices: it is given the state whole and each device's own rows, and returns what `out_specs` says."""
        if self.mesh is None:
            return function
        state_specs = (self.specs.params, self.specs.fast)

        def own(state: tuple[PyTree, PyTree], batch: Batch, known: tuple[Array, ...]) -> Any:
            return function(*sharding.gather(state, state_specs), batch, *known)

        mapped = jax.shard_map(
            own,
            mesh=self.mesh,
            in_specs=(state_specs, sharding.BY_EXAMPLE, WHOLE),
            out_specs=out_specs,
            check_vma=False,
        )
        return lambda params, fast, batch, *known: mapped((params, fast), batch, known)

    def _summed(self, tree: Any, specs: PyTree | None = None) -> Any:
        """The sum over all devices of what each has of its examples."""
        if self.mesh is None:
            return tree
        return sharding.add_up(tree, whole(tree) if specs is None else specs)

    def _start(self, params: PyTree, fast: PyTree, batch: Batch) -> PyTree:
        return fast if self.persistent else self.model.init_fast_state(params, batch.tokens.shape[0])

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One outer step."""
        alike: Any = WHOLE
        learn = self._everywhere(self._learn, Learnt(self.specs.params, alike, alike, alike))
        seen = state.step - self.config.train.step_offset if self.persistent else jnp.zeros((), jnp.int32)
        known = self.schedule(state.step), seen, self._has_row(state.step)
        learnt: Learnt = learn(state.params, state.fast, batch, *known)
        new_state, grad_norm = self._outer_step(state, learnt.gradient, learnt.sums)
        if self.persistent:
            moved = self.model.move(state.params, new_state.params, learnt.fast)
            new_state = new_state._replace(fast=moved)
        return new_state, self._metrics(state, learnt, grad_norm, batch.tokens.shape[0])

    def _has_row(self, step: Array) -> Array:
        """bool []: whether `hooks.after_step` writes a row for the step after `step`."""
        config, number = self.config, step + 1
        ends = [number == config.train.step_offset + 1, number == config.train.steps]
        due = [number % every == 0 for every in (config.log.every, config.eval.every) if every]
        return jnp.stack(ends + due).any()

    def _learn(
        self, params: PyTree, fast: PyTree, batch: Batch, schedule: Array, seen: Array, logged: Array
    ) -> Learnt:
        """Of one device's rows; see `_everywhere`. seen: sequences that a persistent memory has read. logged:
        a row is written; else nobody sees what contexts of one step have written."""
        own: dict[str, Array] = {}
        if not self.streams:
            own = {"seen": seen * batch.tokens.shape[1]} if self.persistent else {"logged": logged}

        def of_rows(batch: Batch) -> Learnt:
            start = self._start(params, fast, batch)
            gradient, result = MODES[self.mode](self.model, self.rule, params, start, batch, schedule, **own)
            writes = jax.tree.map(lambda t: t.sum(1), result.stats)
            return Learnt(gradient, result.sums, writes, result.fast if self.persistent else ())

        learnt = self._by_parts(of_rows, batch)
        persists, learnt = learnt.fast, learnt._replace(fast=())
        specs = whole(learnt)._replace(gradient=self.specs.params)
        # what persists is shared, and so alike on all devices
        return self._summed(learnt, specs)._replace(fast=persists)

    def _by_parts(self, function: Callable[[Batch], Any], batch: Batch) -> Any:
        """The sum of what `function` gives of the `train.accumulate` parts of one device's rows, taken one
        after the other."""
        count = self.config.train.accumulate
        if count == 1:
            return function(batch)
        parts = jax.tree.map(lambda t: t.reshape(count, -1, *t.shape[1:]), batch)
        shapes = jax.eval_shape(function, jax.tree.map(lambda t: t[0], parts))
        zero = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), shapes)
        return jax.lax.scan(lambda sums, part: (trees.add(sums, function(part)), None), zero, parts)[0]

    @jax.named_scope("outer_step")
    def _outer_step(self, state: TrainState, gradient: PyTree, sums: Sums) -> tuple[TrainState, Array]:
        """Steps the meta parameters along the mean gradient per supervised token; also its norm."""
        mean = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1).astype(g.dtype), gradient)
        updates, opt_state = self.optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        return new_state, optax.tree.norm(mean)

    def _metrics(self, state: TrainState, learnt: Learnt, grad_norm: Array, examples: int) -> Metrics:
        sums = learnt.sums
        scalars = {
            "loss": sums.loss / jnp.maximum(sums.tokens, 1),
            "tokens": sums.tokens,
            "grad_norm": grad_norm,
            "lr": self.optim_rule.lr * optim.lr_fraction(self.optim_rule)(state.step),
            "teach_signal_norm": sums.teach_norm / jnp.maximum(sums.teach_tokens, 1),
        }
        metrics: Metrics = {name: value.astype(float) for name, value in scalars.items()}
        metrics["writes"] = {
            level: describe_writes(level_stats, examples)
            for levels in learnt.writes.values()
            for level, level_stats in levels.items()
        }
        return metrics

    def evaluate(self, state: TrainState, batch: Batch) -> Metrics:
        """Summed held-out loss with the memories writing and with their slow weights alone, and what was
        written; see `TrainProgram.eval_step`."""
        return self._everywhere(self._evaluate, WHOLE)(state.params, state.fast, batch)

    def _evaluate(self, params: PyTree, fast: PyTree, batch: Batch) -> Metrics:
        """Of one device's rows; see `_everywhere`."""
        return self._summed(self._by_parts(partial(self._evaluate_rows, params, fast), batch))

    def _evaluate_rows(self, params: PyTree, fast: PyTree, batch: Batch) -> Metrics:
        fast = self._start(params, fast, batch)
        plain, _ = self._read_loss(params, {}, batch)
        tokens = (batch.targets >= 0).sum().astype(jnp.float32)
        sums: Metrics = {"loss_sum": plain, "tokens": tokens, "writes": {}}
        written = self.streams or self.persistent or bool(self.model.stream_memories())
        # Gated DeltaNet mixes tokens by what it writes: there is no reading without.
        if has_memories(self.config) and written:
            if self.streams:
                result = stream_loss(self.model, self.rule._replace(training=False), params, fast, batch)
                loss, stats = result.sums.loss, result.stats
            else:
                loss, stats = self._read_loss(params, fast, batch)
            sums |= {"loss_sum": loss, "loss_sum_no_writes": plain}
            sums["writes"] = {
                level: {name: getattr(of_level, name).sum(1) for name in EVALUATED_WRITES}
                for levels in stats.values()
                for level, of_level in levels.items()
            }
        return sums

    def _read_loss(self, params: PyTree, fast: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        out = self.model.read(params, fast, None, batch.tokens, batch.segment_ids)
        return read_loss(params, out, batch.targets).total, out.stats


def describe_writes(total: WriteStats, examples: int) -> Mapping[str, Array]:
    """Per layer [L], of sums over examples: counts a context, `grad_norm` and `write_norm` an applied write,
    `surprise_value` a period."""
    mean = jax.tree.map(lambda t: t / examples, total)
    described = mean._asdict()
    for name in ("grad_norm", "write_norm"):
        described[name] = getattr(mean, name) / jnp.maximum(mean.updates_applied, 1e-9)
    described["surprise_value"] = mean.surprise_value / jnp.maximum(mean.periods, 1e-9)
    return described


def state_shardings(step: Step, mesh: Mesh) -> TrainState:
    """Where each array of the state lives over the mesh of the step."""
    return jax.tree.map(partial(NamedSharding, mesh), step.specs)


def jit_train(step: Step, mesh: Mesh) -> Any:
    """`step.train` over a mesh, as training runs it and `hope_jax.plan` compiles it: batch split by example,
    state donated and left where it was."""
    placed = (state_shardings(step, mesh), sharding.replicated(mesh))
    return jax.jit(step.train, donate_argnums=0, out_shardings=placed)


def build_program(config: ExperimentConfig, vocab_size: int) -> TrainProgram:
    """Compiles (lazily) the pieces that the training loop drives. vocab_size: of the tokenizer.
    Raises: ConfigError: the tokenizer has more tokens than `model.vocab_size`."""
    if vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's {vocab_size} "
            f"tokens; set --config.model.vocab_size={vocab_size} or larger"
        )
    mesh = make_mesh()
    step = Step(config, mesh)
    everywhere = sharding.replicated(mesh)
    init = jax.jit(step.init, out_shardings=state_shardings(step, mesh))
    train = jit_train(step, mesh)
    evaluate = jax.jit(step.evaluate, out_shardings=everywhere)
    gather_all = jax.jit(lambda tree: tree, out_shardings=everywhere)
    streamer = assemble.streamer(config)

    def generate(
        state: TrainState, prompt: np.ndarray, max_tokens: int, temperature: float, seed: int
    ) -> np.ndarray:
        # One device samples: its own copy of the parameters, without the mesh.
        copies = gather_all((state.params, state.fast))
        params, fast = jax.tree.map(lambda leaf: leaf.addressable_data(0), copies)
        fast = fast if step.persistent else None
        return sampling.generate(
            streamer, params, fast, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    untold = [has_part(config, blocks.ATTENTION)]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        placed = sharding.shard_batch(mesh, batch)
        if untold.pop() if untold else False:
            # the call below runs this very program: it is compiled once
            program = train.lower(state, placed).compile()
            logger.info("attention: %s", attention.form_in(program.as_text()))
        out: tuple[TrainState, Metrics] = train(state, placed)
        return out

    shapes = jax.eval_shape(step.init)
    return TrainProgram(
        init=init,
        train_step=train_step,
        eval_step=lambda state, batch: evaluate(state, sharding.shard_whole_batch(mesh, batch)),
        generate=generate,
        notes=(optim.describe_groups(step.optim_rule, shapes.params, step.untrained),),
        flops_per_token=assemble.flops_per_token(config),
    )
