"""Replays the files that record streams: `attnblock_*`, `hybrid_*`, `selfmod_block*`, `memorize_*`,
`train_online_*`, `level_clock`.

The published rules of writing are other rules than ours, and nothing here imitates them. But whatever is
read before a write, or with memories that the file holds, is read by our code and must match.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import Cms
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.state import WriteSignal, own
from hope_jax.models import blocks
from hope_jax.models.attention import ReadContext
from hope_jax.models.blocks import Call, memories
from hope_jax.models.spec import READ_CLIP, ModelSpec
from parity_tests import convert, replay_smt, replay_train_step
from parity_tests.golden_file import Golden
from parity_tests.published import inner_level
from parity_tests.quick import quick_jit
from parity_tests.reference_style import block_params, block_spec, model_of, offered, with_deltas
from parity_tests.replay_train_step import one_pass

BLOCKS = {"attention": "hope_attention", "hybrid": "hope_hybrid", "selfmod": "hope_selfmod"}

LEAVE = (
    ("fixed.", "teach_aliasing"),
    (".norm.", "slow_layer_norm"),
    (".net.0.", "slow_layer_norm"),
    ("titan", "titan_target"),
    ("weights_after", "module_writes"),
    ("outer_grad", "differentiable_route"),
    ("clock_step", "clock_per_call"),
    ("pending", "dropped_periods"),
    ("delta", "doubled_gradient"),
    ("optimizer_state", "doubled_gradient"),
)
"""Why an output of a stream is not compared, by a part of its name; the first that fits."""


def replay_clock(g: Golden) -> None:
    """The clock of forward calls has no counterpart."""
    g.leave_rest("clock_per_call")


def leave_stream(g: Golden, rest: str) -> None:
    """Leaves out what is pending, by name; what no name tells under `rest`."""
    for name in sorted(g.pending):
        titan_norm = "titan" in name and ".net.0." in name
        reasons = [why for part, why in LEAVE if part in name and not (titan_norm and part == ".net.0.")]
        g.leave_out(name, (reasons or [rest])[0])


class Calls:
    """The calls of a block in a file, as plain reads with the memories that the file holds."""

    def __init__(self, g: Golden) -> None:
        self.g, config = g, g.config
        self.spec: ModelSpec = block_spec(BLOCKS[config["kind"]], config["block"], g.weights)
        self.training = bool(config.get("train_mode", False))
        self.weights: Mapping[str, np.ndarray] = g.weights
        self._read = quick_jit(self._plain)

    def remember(self, call: int) -> bool:
        """Takes the memories that call `call` left; whether it changed any."""
        before = self.weights
        if self.g.config.get("route") == "module":
            self.weights = {**before, **self.g.under(f"call.{call}.weights_after")}
        else:
            self.weights = with_deltas(self.g.weights, self.g.under(f"call.{call}"))
        return any((self.weights[name] != before[name]).any() for name in before)

    def params(self) -> Any:
        """The block's parameters with what has been written."""
        return block_params(self.spec, self.weights)

    def read(self, x: Any) -> tuple[Any, Any]:
        """y [B, T, D] and the input of the CMS; self-modifying memories at their first weights."""
        return self._read(self.params(), x)

    def read_cms(self, o: Any) -> Any:
        """The CMS alone."""
        if not self.spec.cms.levels:
            return o
        cms = memories(self.spec, training=self.training)["cms"]
        params = self.params()["cms"]
        return jax.vmap(lambda row: cms.read(params, None, row, {})[0])(jnp.asarray(o))

    def _plain(self, params: Any, x: Any) -> Any:
        call = Call({}, None, {}, ReadContext(jnp.int32(0), jnp.ones(x.shape[:2], jnp.int32), None))

        def read(spec: ModelSpec) -> Any:
            return blocks.read(spec, self.training, params, x, call).x

        return read(self.spec), read(replace(self.spec, cms=replace(self.spec.cms, levels=FrozenMapping())))


def replay_block(g: Golden) -> None:
    """Outputs that no write of their own call has touched: whole calls that wrote nothing, and the first
    piece of the others; all of self-modifying Titans, whose published calls ours can make."""
    config, block = g.config, g.config["block"]
    if not offered(block):
        g.leave_rest("not_offered")
        return
    calls = Calls(g)
    longest = max(g.inputs[f"x.{i}"].shape[1] for i in range(len(config["calls"])))
    piece = shortest_period(block, longest)
    if not block.get("cms_online_updates", True):
        piece = longest
    self_mod = SelfModCalls(calls) if config["kind"] == "selfmod" else None
    inputs = []
    for i in range(len(config["calls"])):
        x = jnp.asarray(g.inputs[f"x.{i}"])
        teaches = config["calls"][i].get("teach", True)
        if self_mod is None:
            y, o = calls.read(x)
        else:
            o = self_mod.output(i, x, teaches)
            y = calls.read_cms(o)
        inputs.append(o)
        wrote, name = calls.remember(i), f"call.{i}.y"
        if not wrote or piece >= x.shape[1]:
            g.compare(name, y)
        else:
            g.check(f"{name}[first piece]", y[:, :piece], g.outputs[name][:, :piece])
    _name_rules(g)
    g.differ("rewritten_inputs", cms_gap(calls, inputs))
    leave_stream(g, "rewritten_inputs")


def shortest_period(config: Mapping[str, Any], default: int) -> int:
    """Of the CMS levels of a recorded model or block: the tokens of a piece. default: without levels."""
    return min((level["update_period"] for level in config.get("cms_levels") or ()), default=default)


def cms_gap(calls: Calls, inputs: list[Any]) -> float | None:
    """How far our CMS is from the published one over the same inputs, signals and rates: the largest
    difference of the outputs.

    Fed the doubled signal and unbounded, so that what is left are the rules of when and where gradients are
    taken, and LayerNorm. None where our grid does not fit, or other rules have a part in it.
    """
    g, block = calls.g, calls.g.config["block"]
    if not calls.spec.cms.levels:
        return None
    size = shortest_period(block, 1)
    aligned = all(o.shape[1] % size == 0 for o in inputs)
    aligned &= all(level["update_period"] % size == 0 for level in block["cms_levels"])
    plain = g.config.get("surprise_threshold") is None and g.config.get("allowed_levels") is None
    plain &= not g.config.get("differentiable_updates", False)
    plain &= block.get("cms_chunk_reduction", "sum") == "sum"
    online = block.get("cms_online_updates", True) and g.config.get("route") == "fast"
    if not (aligned and plain and online and inputs[0].shape[0] == 1):
        return None
    cms = Cms(
        {level["name"]: _inner(g, level) for level in block["cms_levels"]},
        calls.spec.dim,
        calls.spec.cms.hidden_multiplier * calls.spec.dim,
        WriteRules(
            size,
            MemoryOptions(write_clip=0.0, delta_clip=0.0),
            block.get("cms_flush_partial_at_end", False),
        ),
        own_output=False,
        output_clip=READ_CLIP if calls.training else None,
        activation=calls.spec.activation,
    )
    params = block_params(calls.spec, g.weights)["cms"]
    norms, everywhere = cms.norms(params), jnp.ones(size, bool)

    @partial(quick_jit, static_argnames="last")
    def piece(fast: Any, x: Any, teach: Any, position: Any, last: bool) -> Any:
        y, trace = cms.read(params, fast, x, {})
        signal = WriteSignal(2.0 * teach, {}, jnp.ones(size), everywhere, (teach != 0).any(-1))
        return y, cms.write(params, norms, fast, trace, signal, position=position, reduce=own, last=last)[0]

    fast, position, gap = cms.init(params), 0, 0.0
    for i, o in enumerate(inputs):
        teach = g.inputs.get(f"teach.{i}", np.zeros(o.shape))
        for start in range(0, o.shape[1], size):
            at = slice(start, start + size)
            ends = bool(g.config["calls"][i].get("finalize", False)) and at.stop == o.shape[1]
            y, fast = piece(fast, o[0, at], teach[0, at], position, last=ends)
            recorded = g.outputs.get(f"fixed.call.{i}.y", g.outputs[f"call.{i}.y"])
            gap = max(gap, float(np.abs(y - recorded[0, at]).max()))
            position += size
    return gap


def _inner(g: Golden, level: Mapping[str, Any]) -> Level:
    block = g.config["block"]
    optimizers = block.get("optimizer_configs") or {}
    found = optimizers.get(level.get("optimizer_key") or "default")
    spec = inner_level(g, found, block.get("self_mod_lr", 1e-3), level["update_period"])
    return replace(spec, update_period=level["update_period"])


class SelfModCalls:
    """Self-modifying Titans through the calls of a block: they write by rules that ours can follow."""

    def __init__(self, calls: Calls) -> None:
        self.calls, self.memory = calls, replace(calls.spec.self_mod, online_chunk=1)
        self.module = calls.g.config.get("route") == "module"
        self.state: Any = None
        self._first = calls.params()["self_mod"]
        self._calls = replay_smt.Calls(self.memory, self._first)

    def output(self, call: int, x: Any, teaches: bool) -> Any:
        """o [B, T, D] of a call; its state is compared with the recorded one."""
        params = self.calls.params()["self_mod"]
        if self.module or not teaches:
            held = self.state.weights if self.state is not None else None
            o = _read_self_mod(self.memory, params, held, x)
        else:
            if self.state is None:
                self.state = replay_smt.broadcast(self.memory.init(params), len(x))
            o, self.state = self._calls(self.state, x)
        if self.state is not None:
            replay_smt.compare_state(
                self.calls.g, f"call.{call}.selfmod_state", self.state, prefix="selfmod."
            )
        return o


def _read_self_mod(memory: Any, params: Any, weights: Any, x: Any) -> Any:
    """A read of module weights, or of a state's weights per example."""

    def row(weights: Any, row: Any) -> Any:
        return memory.read({**params, **weights}, None, None, row, position=0)[0]

    return jax.vmap(row, in_axes=(0 if weights else None, 0))(weights or {}, x)


def _name_rules(g: Golden) -> None:
    """The rules that a block's file shows beyond the names of its outputs."""
    config = g.config
    g.differ("doubled_gradient")
    if config.get("surprise_threshold") is not None:
        g.differ("batch_surprise")
    if config.get("batch", 1) > 1:
        g.differ("shared_over_batch")
    if config.get("kind") == "selfmod":
        g.differ("restart_at_call")
    if config.get("teach_alias_bug_changes_result"):
        gaps = [
            np.abs(g.outputs[f"fixed.{name}"] - value).max()
            for name, value in g.outputs.items()
            if name.endswith(".y") and f"fixed.{name}" in g.outputs
        ]
        g.differ("teach_aliasing", float(max(gaps)) if gaps else None)


def replay_memorize(g: Golden) -> None:
    """What was read before the first write, and after the last one with the recorded memories."""
    config = g.config["model"]
    if not offered(config):
        g.leave_rest("not_offered")
        return
    texts = {name: g.inputs[name] for name in ("tokens", "probe") if name in g.inputs}
    for name, text in texts.items():
        if f"before.{name}" in g.outputs:
            g.compare(f"before.{name}", _logits(config, g.weights, text))
    for call, weights in _memorized(g).items():
        for name, text in texts.items():
            if f"memorize_call.{call}.logits_{name}" in g.outputs:
                g.compare(f"memorize_call.{call}.logits_{name}", _logits(config, weights, text))
    g.differ("memorize_rules")
    leave_stream(g, "memorize_rules")


def _memorized(g: Golden) -> dict[int, Mapping[str, np.ndarray]]:
    """The weights to read with after a call that memorized, by call, where the file holds all that it wrote:
    the deltas after the last call or, by the module route, weights of the module (after each call, or the
    last)."""
    calls = sorted({int(name.split(".")[0]) for name in g.under("memorize_call")})
    fast = g.under("fast_state")
    if calls and fast:
        if any("selfmod_state" in name for name in fast):
            return {}
        weights = dict(g.weights)
        for layer in range(g.config["model"]["num_layers"]):
            block = convert.under(g.weights, f"blocks.{layer}")
            written = with_deltas(block, g.under(f"fast_state.layer{layer}"))
            weights.update({f"blocks.{layer}.{name}": value for name, value in written.items()})
        return {calls[-1]: weights}
    found: dict[int, Mapping[str, np.ndarray]] = {}
    now: dict[str, np.ndarray] = dict(g.weights)
    for call in calls:
        last = call == calls[-1]
        changed = g.under(f"memorize_call.{call}.weights_after") or (last and g.under("weights_after")) or {}
        if changed and _all_written(g.weights, changed):
            now = {**now, **changed}
            found[call] = now
    return found


def _all_written(weights: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray]) -> bool:
    """Whether the changed weights of a model are those of whole memories, the same ones in all layers: a file
    may hold a selection."""
    written, whole = _by_memory(changed), _by_memory(weights)
    layers = [{part for at, part in written if at == layer} for layer in {at for at, _ in whole}]
    complete = all(names >= whole.get(memory, set()) for memory, names in written.items())
    return complete and bool(written) and all(parts == layers[0] for parts in layers)


def _by_memory(weights: Iterable[str]) -> dict[tuple[str, str], set[str]]:
    """The names of a model's weights that every write of their memory changes, by layer and memory."""
    found: dict[tuple[str, str], set[str]] = {}
    for name in weights:
        if match := _WRITTEN.fullmatch(name):
            found.setdefault((match[1], match[2]), set()).add(name)
    return found


_WRITTEN = re.compile(r"blocks\.(\d+)\.(cms\.blocks\.[^.]+|titan_memory|selfmod\.m_(?:k|v|eta|memory))\..+")


def _logits(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], text: np.ndarray) -> Any:
    model, params = model_of(config, weights)
    tokens = jnp.asarray(text, jnp.int32)
    read = quick_jit(lambda p, t: model.logits(p, model.read(p, {}, None, t, jnp.ones_like(t)).hidden))
    return read(params, tokens)


def replay_training(g: Golden) -> None:
    """The loss and the teach signals of the first piece; other training is `replay_train_step`'s."""
    config, train = g.config["model"], g.config["train"]
    if not train.get("online_updates", False):
        replay_train_step.replay(g)
        return
    if not offered(config):
        g.leave_rest("not_offered")
        return
    tokens = jnp.asarray(g.inputs["tokens.0"], jnp.int32)
    size = train.get("online_chunk_size") or shortest_period(config, tokens.shape[1])
    boundary = train.get("online_boundary_targets", False)
    targets = jnp.concatenate([tokens[:, 1:], jnp.full((len(tokens), 1), -1)], axis=1)[:, :size]
    targets = targets if boundary else targets.at[:, -1].set(-1)
    if (targets >= 0).any():
        first = one_pass(config, dict(g.weights), tokens[:, :size], targets)
        g.check("call_losses[first piece]", first.loss, np.float64(g.outputs["call_losses"][0]))
        for layer in g.under("layer_teach.call0"):
            g.compare(f"layer_teach.call0.{layer}", first.teach[int(layer)])
    if g.config.get("forced_math_attention") or "through_write" in g.name:
        g.differ("differentiable_route")
    g.differ("mean_loss")
    g.leave_rest("online_training", [name for name in g.outputs if not name.startswith("fast_state")])
    leave_stream(g, "online_training")
