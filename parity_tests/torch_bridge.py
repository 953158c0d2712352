"""The torch reference's settings as production's, parameters and states across, and their comparison."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from hope_jax.core.types import NO_TARGET, Batch, FrozenMapping
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.teach import Teach
from hope_jax.memory import levels
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import MemoryOptions
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.memory.titan import SelfModifierOptions, TitanOptions
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import READ_CLIP, ModelSpec
from parity_tests.torch_reference import model as reference
from parity_tests.torch_reference import nested
from parity_tests.torch_reference.settings import Arch, Level, Rules
from parity_tests.torch_reference.stream import Example
from parity_tests.torch_reference.trees import tree_map

DIM, HIDDEN, VOCAB, LAYERS = 8, 16, 11, 2

QUICK = {"xla_backend_optimization_level": 0}

_DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16"}


def level_of(level: Level) -> levels.Level:
    """One level's constants."""
    return levels.Level(level.period, level.lr, level.optimizer, level.beta, level.beta2, level.eps)


def hope_model(arch: Arch, rules: Rules, conv: int = 0) -> HopeModel:
    """The production model. conv: taps of attention's convolution, or of the self-modifying memories'."""
    own, multiplier = arch.self_mod, HIDDEN // DIM
    modifier = SelfModifierOptions(arch.self_modifier, arch.correction_clip)
    assert arch.read_clip in (0.0, READ_CLIP)
    return HopeModel(
        ModelSpec(
            block_variant=arch.variant,  # type: ignore[arg-type]
            style=arch.style,  # type: ignore[arg-type]
            vocab_size=VOCAB,
            dim=DIM,
            num_layers=LAYERS,
            heads=arch.heads,
            mlp_multiplier=multiplier,
            qk_norm=arch.qk_norm,  # type: ignore[arg-type]
            rope_theta=arch.rope_theta,
            sliding_window=arch.window,
            local_conv_window=conv,
            chunk_size=rules.chunk,
            cms=CmsOptions(
                FrozenMapping({level.name: level_of(level) for level in arch.levels}),
                hidden_multiplier=multiplier,
                connection=arch.connection,  # type: ignore[arg-type]
                delta_at="own_output" if rules.own_output else "block_output",
                flush_partial_at_end=rules.flush,
            ),
            titan=TitanOptions(level_of(arch.titan), multiplier, modifier),
            self_modifying_titans=SelfModifyingTitans(
                chunk_size=own.chunk,
                chunk_size_memory=own.chunk_memory,
                eta_scale=own.eta_scale,
                qk_norm=own.qk_norm,
                adaptive_q=own.adaptive_q,
                use_alpha=own.use_alpha,
                rank1_precondition=own.rank1,
                objective=own.objective,  # type: ignore[arg-type]
                stopgrad_vhat=own.stopgrad_vhat,
                momentum=own.momentum,
                local_conv_window=conv,
                alpha_init="near_one",
            ),
            memory=MemoryOptions(rules.metric, rules.threshold, rules.write_clip, rules.delta_clip),
            dtype=jnp.dtype(_DTYPES[arch.dtype]),
        )
    )


def online_rule(rules: Rules, *, training: bool = True) -> OnlineRule:
    """The production rule."""
    teach = Teach(rules.teach_scale, rules.teach_clip, source=rules.source)
    return OnlineRule(rules.chunk, rules.truncate or rules.chunk, teach, training)


def random_params(model: HopeModel, seed: int = 0) -> Any:
    """Fresh parameters with noise on every leaf, so that none is zero or one; the gate that keeps what
    self-modifying memories hold starts near sigmoid(2), where decay shows within few tokens."""
    params = jax.tree.map(np.asarray, model.init_params(jax.random.key(seed)))
    rng = np.random.default_rng(seed)

    def jitter(path: Any, leaf: np.ndarray) -> np.ndarray:
        start = 2.0 if "b_alpha" in jax.tree_util.keystr(path) else leaf
        noise = 0.5 / np.sqrt(leaf.shape[-2]) if leaf.ndim > 2 else 0.2
        return (start + noise * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(jitter, params)


def to_torch(tree: Any) -> Any:
    """Nested dicts of arrays as tensors."""
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), dict(tree))


def to_numpy(tree: Any) -> Any:
    """Tensors as arrays."""
    return tree_map(lambda leaf: leaf.detach().double().numpy(), tree)


def examples(count: int, tokens: int, seed: int = 0) -> list[Example]:
    """Rows of two documents and a token of padding. The last token of a document has no target; nor have
    tokens 8 to 11, a whole period of 4, and one more."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(0, VOCAB, tokens)
        first = int(rng.integers(tokens // 3, 2 * tokens // 3))
        segments = np.where(np.arange(tokens) < first, 1, 2)
        segments[tokens - 1] = 0
        targets = np.append(ids[1:], NO_TARGET)
        targets[[first - 1, tokens - 2, int(rng.integers(0, tokens))]] = NO_TARGET
        targets[8:12] = NO_TARGET
        rows.append(Example(ids.tolist(), targets.tolist(), segments.tolist()))
    return rows


def batch_of(rows: list[Example]) -> Batch:
    """Examples as a production batch."""
    return Batch(
        *(
            jnp.asarray([getattr(row, f) for row in rows], jnp.int32)
            for f in ("tokens", "targets", "segments")
        )
    )


def assert_close(got: Any, wanted: Any, what: str, tolerance: float = 1e-9) -> None:
    """Same tree; leaves within `tolerance` of max(1, largest magnitude), computed in double precision."""
    got, wanted = jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, wanted)
    assert jax.tree.structure(got) == jax.tree.structure(wanted), what
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        name = f"{what}{jax.tree_util.keystr(path)}"
        assert a.dtype == np.float64, f"{name}: computed in {a.dtype}"
        assert np.isfinite(b).all(), f"{name}: the reference is not finite"
        bound = tolerance * max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


def example_of(tree: Any, *at: int) -> Any:
    """One example's part of leaves [B, ...], or one layer's and example's of leaves [L, B, ...]."""
    return jax.tree.map(lambda leaf: leaf[at], tree)


def moments(level: Level, state: Any) -> dict[str, Any]:
    """First (`v`) and second (`s`) moments in production's inner-optimizer state."""
    if level.optimizer == "titans":
        return {"v": dict(state)}
    found = {}
    names = {"ema": "v", "trace": "v", "nu": "s"}
    for part in jax.tree.leaves(state, is_leaf=lambda t: any(hasattr(t, name) for name in names)):
        found |= {kind: dict(getattr(part, name)) for name, kind in names.items() if hasattr(part, name)}
    return found


def written(arch: Arch) -> list[tuple[str, str, Level]]:
    """(memory, name, the level that writes it) of all that teach signals write; a nested level's init too."""
    found = [(memory, level.name, level) for memory, level in reference.taught_levels(arch)]
    if arch.connection == "nested":
        inits = nested.writers(arch.levels).items()
        found += [("cms", name, by) for name, (of, by) in inits if name != of.name]
    return found


def production_fast(arch: Arch, fast: Any, layer: int, example: int) -> dict[str, Any]:
    """One layer's and example's fast state of production as plain dicts."""
    state = example_of(fast[layer], example)
    plain: dict[str, Any] = {}
    for memory, name, by in written(arch):
        owner = name.removesuffix(".init")
        here = state[memory][owner] if owner == name else state[memory][owner].init
        plain[name] = {"delta": dict(here.delta), "moments": moments(by, here.opt)}
    if "self_mod" in state:
        plain["self_mod"] = {"weights": state["self_mod"].weights}
        if arch.self_mod.momentum:
            plain["self_mod"]["momentum"] = state["self_mod"].momentum
    return plain


def reference_fast(arch: Arch, state: dict[str, Any]) -> dict[str, Any]:
    """One layer's fast state of the reference as plain dicts of arrays."""
    plain: dict[str, Any] = {}
    for memory, name, by in written(arch):
        here = state[memory][name]
        # Without averaging, production keeps no first moment.
        kept = {k: m for k, m in here.moments.items() if k != "v" or by.beta > 0}
        plain[name] = {"delta": here.delta, "moments": kept}
    if "self_mod" in state:
        plain["self_mod"] = {"weights": state["self_mod"].weights}
        if arch.self_mod.momentum:
            plain["self_mod"]["momentum"] = state["self_mod"].momentum
    return to_numpy(plain)


def compare_fast(arch: Arch, got: Any, wanted: list[reference.ByLayer], what: str = "fast") -> None:
    """Production's fast state against the reference's, by example."""
    for b, by_layer in enumerate(wanted):
        for layer, state in enumerate(by_layer):
            here = production_fast(arch, got, layer, b)
            assert_close(here, reference_fast(arch, state), f"{what} of example {b} layer {layer}: ")


def summed(function: Callable[[Any], Any], items: list[Any]) -> Any:
    """Sum over items of trees of arrays."""
    return jax.tree.map(lambda *leaves: sum(leaves), *[function(item) for item in items])
