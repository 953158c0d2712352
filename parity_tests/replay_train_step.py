"""Replays steps without online chunks (`train_step_*`): a pass over the batch, clip, optimizer step.

Models without memories do nothing else, so everything must match. Others then write them into their
weights; what precedes the first such write must match, what follows is a deliberate difference.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope_jax.learning.chunk import read_loss
from parity_tests import convert, replay_optim
from parity_tests.golden_file import Golden
from parity_tests.quick import quick_jit
from parity_tests.reference_style import model_of
from parity_tests.replay_model import next_tokens
from parity_tests.replay_teach import head_signal

MAX_NORM = 1.0
NORM_EPS = 1e-6
"""Torch adds it to the norm that it clips by."""
MEMORIES = (".cms.", ".titan_memory.", ".selfmod.", ".self_modifier.")
"""What the update pass after the optimizer's step writes into."""
AFTER = ("weights_after.", "stats_weight_norms_after")

Arrays = dict[str, np.ndarray]


class Pass(NamedTuple):
    """loss: mean over targets. grads: by torch name. teach: [L, B, T, D] at every block's output.
    logits: [B, T, V]."""

    loss: float
    grads: Arrays
    teach: np.ndarray
    logits: jax.Array


def one_pass(config: Mapping[str, Any], weights: Arrays, tokens: jax.Array, targets: jax.Array) -> Pass:
    """The mean loss of a batch in train mode, its gradients and teach signals."""
    model, params = model_of(config, weights)

    def loss(params: Any, taps: Any) -> tuple[Any, Any]:
        out = model.read(params, {}, None, tokens, jnp.ones_like(tokens), taps, training=True)
        losses = read_loss(params, out, targets)
        return losses.total / losses.supervised_bt.sum(), model.logits(params, out.hidden)

    both = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, logits), (grads, taps) = both(params, model.init_taps(*tokens.shape))
    by_name = convert.torch_model(grads, config["num_layers"])
    return Pass(float(value), by_name, np.stack([layer["block"] for layer in taps]), logits)


def replay(g: Golden) -> None:
    """Losses, teach signals, gradients, norms, and the weights at the end."""
    config, train = g.config["model"], g.config["train"]
    writes = _writes(g)
    steps = range(1 if writes else train["steps"])
    weights, losses, norms = dict(g.weights), [], []
    optimizer, state = _optimizer(g, weights), None
    for step in steps:
        tokens = jnp.asarray(g.inputs[f"tokens.{step}"], jnp.int32)
        done = one_pass(config, weights, tokens, next_tokens(tokens))
        trained = {name: weights[name] for name in done.grads}
        norm = float(optax.tree.norm(done.grads))
        clipped = {name: min(1.0, MAX_NORM / (norm + NORM_EPS)) * grad for name, grad in done.grads.items()}
        state = optimizer.init(trained) if state is None else state
        updates, state = optimizer.update(clipped, state, trained)
        weights.update({name: np.asarray(w + updates[name]) for name, w in trained.items()})
        losses.append(done.loss)
        norms.append(norm)
        _compare_step(g, step, done, weights["embed.weight"], tokens)
    if writes:
        named = [name for name in g.outputs if name.startswith(AFTER) or name.startswith("stats_update")]
        g.leave_rest("module_writes", [n for n in named if any(m in n for m in MEMORIES) or "stats" in n])
        g.leave_rest("module_writes", ["stats_logged_last_step"])
        if train["steps"] > len(steps):
            g.leave_rest("module_writes")
    for name, values in (("call_losses", losses), ("clip_total_norm", norms)):
        if name in g.pending:
            g.compare(name, np.asarray(values))
    _compare_end(g, weights, len(steps))


def _writes(g: Golden) -> bool:
    """Whether the model has memories."""
    return any(part in name for name in g.weights for part in MEMORIES)


def _optimizer(g: Golden, weights: Arrays) -> optax.GradientTransformation:
    """The recorded optimizer over torch-named weights; Muon's result in bfloat16 is not compared."""
    optim = {"weight_decay": 0.0, **g.config["optim"]}
    kind = optim.get("type", "adamw")
    if kind == "muon":
        g.leave_rest("muon_bias_correction", [name for name in g.outputs if name.startswith(AFTER)])
    if kind != "m3":
        return replay_optim.adamw(optim)
    matrices = {
        name: "m3" if w.ndim >= 2 and "norm" not in name and "embed" not in name else "adamw"
        for name, w in weights.items()
    }
    return optax.partition({"m3": replay_optim.m3(optim), "adamw": replay_optim.adamw(optim)}, matrices)


def _compare_step(g: Golden, step: int, done: Pass, new_head: np.ndarray, tokens: jax.Array) -> None:
    for name in g.under(f"grad_before_clip.{step}"):
        g.compare(f"grad_before_clip.{step}.{name}", done.grads[name])
    norms = {name: np.linalg.norm(grad) for name, grad in done.grads.items()}
    if f"grad_norms.{step}.stats" in g.outputs:
        recorded = g.outputs[f"grad_norms.{step}.stats"]
        unread = {name for name in norms if name not in recorded and not norms[name]}
        g.compare(f"grad_norms.{step}.stats", {k: v for k, v in norms.items() if k not in unread})
    signal_norm = np.linalg.norm(done.teach, axis=-1).mean()
    for layer in g.under(f"layer_teach.call{step}"):
        g.compare(f"layer_teach.call{step}.{layer}", done.teach[int(layer)])
    if f"global_teach.call{step}" in g.outputs:
        # Of the old logits with the new head, and not pulled back through the final norm.
        targets = next_tokens(tokens)
        signal = head_signal(done.logits, targets, jnp.asarray(new_head)) / (targets >= 0).sum()
        g.compare(f"global_teach.call{step}", signal)
        signal_norm = jnp.linalg.norm(signal, axis=-1).mean()
    last = step + 1 == g.config["train"]["steps"] and not _writes(g)
    if last and "stats_logged_last_step" in g.outputs:
        logged = {"loss": done.loss, "ppl": np.exp(done.loss), "teach_signal_norm": signal_norm}
        g.compare("stats_logged_last_step", logged)


def _compare_end(g: Golden, weights: Arrays, steps: int) -> None:
    after = {"weights_after": weights, "stats_surprise_override": [None] * steps}
    after["stats_update_metrics"] = [{}] * steps
    after["stats_weight_norms_after"] = {name: np.linalg.norm(w) for name, w in weights.items()}
    for name in sorted(g.pending):
        head, _, rest = name.partition(".")
        if head in after:
            g.compare(name, after[head][rest] if rest else after[head])
