"""The outer optimizers: which parameter each updates, and M3 against Algorithm 1 stated in numpy."""

from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hope_jax.kernels.newton_schulz import CUBIC, iterate, unit

from hope_jax.optim import outer as optim
from hope_jax.optim.m3 import M3Rule, scale_by_m3
from hope_jax.optim.outer import FROZEN, MATRIX, OTHER, Optim, OptimRule
from hope_jax.storage.arrays import named

LAYERS, DIM, HIDDEN = 2, 4, 6

SHAPES: dict[str, Any] = {
    "embed": (9, DIM),
    "final_norm": {"scale": (DIM,)},
    "blocks": {
        "attn": {"w_q": (LAYERS, DIM, DIM), "norm_scale": (LAYERS, DIM), "conv": (LAYERS, 3, DIM)},
        "cms": {"fast": {"w_up": (LAYERS, DIM, HIDDEN), "b_up": (LAYERS, HIDDEN)}},
        "titan": {"self_modifier": {"w_in": (LAYERS, 3 * DIM, HIDDEN)}, "w_up": (LAYERS, DIM, HIDDEN)},
        "self_mod": {
            "k": {"w_in": (LAYERS, HIDDEN, DIM), "w_out": (LAYERS, DIM, HIDDEN)},
            "eta": {"w_in": (LAYERS, HIDDEN, DIM), "w_out": (LAYERS, 1, HIDDEN)},
        },
    },
}
"""Parameters as the models name them, all kinds."""


NAMES = get_args(get_type_hints(Optim)["name"])


def draw(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), SHAPES, is_leaf=lambda t: type(t) is tuple)


def by_path(tree: Any) -> dict[str, Any]:
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def rule(name: str = "adamw", **values: Any) -> OptimRule:
    defaults = {"lr": 0.02, "adam_lr": 0.01, "total_steps": 10, "schedule": "constant", "grad_clip": 0.0}
    return OptimRule(name=name, **{**defaults, **values})


def run(
    optimizer: optax.GradientTransformation, params: Any, steps: int, scale: float = 1.0
) -> tuple[Any, Any]:
    """Parameters after `steps` updates with drawn gradients, and the optimizer's state."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(steps):
        updates, state = update(jax.tree.map(lambda g: scale * g, draw(100 + i)), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def newton_schulz(x: jax.Array, steps: int, eps: float) -> jax.Array:
    return iterate(unit(x, eps), CUBIC, steps)


def numpy_newton_schulz(x: np.ndarray, steps: int, eps: float) -> np.ndarray:
    if x.ndim < 2:
        return x
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(steps):
        x = 0.5 * x @ (3 * np.eye(x.shape[1]) - x.T @ x)
    return x


def numpy_m3(grads: list[np.ndarray], r: M3Rule) -> list[np.ndarray]:
    """Algorithm 1 for one matrix or vector: the directions that are multiplied by the rate."""
    m1 = m2 = v = o2 = np.zeros_like(grads[0])
    directions = []
    for t, g in enumerate(grads, start=1):
        m1, v = m1 + r.beta1 * g, v + r.beta2 * g**2
        o1 = numpy_newton_schulz(m1, r.ns_steps, r.eps)
        directions.append((o1 + r.alpha * o2) / (np.sqrt(v) + r.eps))
        if t % r.slow_chunk == 0:
            m2 = m2 + r.beta3 * np.sum(grads[t - r.slow_chunk : t], axis=0)
            o2 = numpy_newton_schulz(m2, r.ns_steps, r.eps)
    return directions


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4,)])
def test_m3_is_algorithm_1(shape: tuple[int, ...]) -> None:
    r = M3Rule(slow_chunk=3, beta1=0.7, beta2=0.6, beta3=0.5, alpha=0.4, ns_steps=2, eps=1e-3)
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) for _ in range(8)]
    transform = scale_by_m3(r)
    state, update = transform.init(jnp.zeros(shape)), jax.jit(transform.update)
    for got_grad, wanted in zip(grads, numpy_m3(grads, r), strict=True):
        got, state = update(jnp.asarray(got_grad), state)
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    assert int(state.steps) == 8


def test_the_slow_momentum_of_step_kf_serves_from_the_next_step_on() -> None:
    """With alpha and without it the directions agree up to and including step f, and differ after."""
    rng = np.random.default_rng(1)
    grads = [rng.normal(size=(3, 3)) for _ in range(5)]
    for slow_chunk in (1, 3):
        with_slow, without = (
            numpy_m3(grads, M3Rule(slow_chunk=slow_chunk, alpha=alpha)) for alpha in (1.0, 0.0)
        )
        transform = scale_by_m3(M3Rule(slow_chunk=slow_chunk))
        state = transform.init(jnp.zeros((3, 3)))
        for t, g in enumerate(grads, start=1):
            got, state = transform.update(jnp.asarray(g), state)
            same = np.allclose(got, without[t - 1], rtol=1e-9)
            assert same == (t <= slow_chunk), (slow_chunk, t)
            np.testing.assert_allclose(got, with_slow[t - 1], rtol=1e-10)


def test_newton_schulz_takes_each_layer_of_a_stack_as_one_matrix() -> None:
    stack = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 4, 5)))
    wanted = [[numpy_newton_schulz(np.asarray(m), 3, 1e-8) for m in row] for row in stack]
    np.testing.assert_allclose(newton_schulz(stack, 3, 1e-8), wanted, rtol=1e-12)
    np.testing.assert_allclose(
        newton_schulz(stack, 3, 1e-8), newton_schulz(stack.swapaxes(-1, -2), 3, 1e-8).swapaxes(-1, -2)
    )


def test_newton_schulz_ends_at_the_nearest_orthogonal_matrix() -> None:
    x = np.random.default_rng(3).normal(size=(4, 6))
    left, _, right = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(newton_schulz(jnp.asarray(x), 40, 1e-12), left @ right, atol=1e-9)
    assert not np.any(newton_schulz(jnp.zeros((4, 6)), 3, 1e-8))


def test_groups_of_all_kinds_of_parameters() -> None:
    groups = by_path(optim.parameter_groups(draw(0)))
    assert {p for p, g in groups.items() if g == MATRIX} == {
        *("blocks/attn/w_q", "blocks/cms/fast/w_up", "blocks/titan/w_up"),
        *("blocks/titan/self_modifier/w_in", "blocks/self_mod/eta/w_in"),
        *("blocks/self_mod/k/w_in", "blocks/self_mod/k/w_out"),
    }
    with_tables = by_path(optim.parameter_groups(draw(0), tables=True))
    assert {p for p in groups if groups[p] != with_tables[p]} == {"embed"}
    # A side of length 1 is a vector, the convolution a set of filters.
    assert groups["blocks/self_mod/eta/w_out"] == groups["blocks/attn/conv"] == OTHER


@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_updated_by_the_named_optimizer_and_the_rest_by_adamw(name: str) -> None:
    params = draw(0)
    got = by_path(run(optim.make_optimizer(rule(name, weight_decay=0.1)), params, 3)[0])
    adam = by_path(run(optax.adamw(0.02 if name == "adamw" else 0.01, weight_decay=0.0), params, 3)[0])
    groups = by_path(optim.parameter_groups(params))
    by_adam = {path for path in got if np.allclose(got[path], adam[path], rtol=1e-12)}
    others = {path for path, group in groups.items() if group == OTHER}
    assert by_adam == others - ({"embed"} if name == "muon" else set())


def test_m3_updates_each_layer_with_decoupled_decay() -> None:
    params, r = draw(0), M3Rule(slow_chunk=2)
    got = by_path(run(optim.make_optimizer(rule("m3", weight_decay=0.1, m3=r)), params, 3)[0])
    for path in ("blocks/attn/w_q", "blocks/self_mod/k/w_in"):
        for layer in range(LAYERS):
            wanted = np.asarray(by_path(params)[path][layer])
            grads = [np.asarray(by_path(draw(100 + i))[path][layer]) for i in range(3)]
            for direction in numpy_m3(grads, r):
                wanted = wanted - 0.02 * (direction + 0.1 * wanted)
            np.testing.assert_allclose(got[path][layer], wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["muon_hybrid", "muon"])
def test_muon_scales_by_out_over_in_whichever_way_a_matrix_lies(name: str) -> None:
    """One step of one layer's matrix has singular values near sqrt(max(1, out / in)) times the rate."""
    params = draw(0)
    moved = by_path(run(optim.make_optimizer(rule(name, weight_decay=0.0)), params, 1)[0])
    sizes = {
        "blocks/cms/fast/w_up": (DIM, HIDDEN),
        "blocks/titan/self_modifier/w_in": (3 * DIM, HIDDEN),
        "blocks/self_mod/k/w_in": (DIM, HIDDEN),
        "blocks/self_mod/k/w_out": (HIDDEN, DIM),
    }
    for path, (fan_in, fan_out) in sizes.items():
        step = np.asarray(moved[path] - by_path(params)[path])[0] / 0.02
        spread = np.linalg.svd(step, compute_uv=False) / np.sqrt(max(1, fan_out / fan_in))
        assert spread.min() > 0.6 and spread.max() < 1.3, path
    table = np.linalg.svd(np.asarray(moved["embed"] - params["embed"]) / 0.02, compute_uv=False)
    assert (table.min() > 0.6 and table.max() < 1.3) == (name == "muon")


@pytest.mark.parametrize("name", ["muon_hybrid", "muon"])
def test_muon_is_optax_muon(name: str) -> None:
    """optax's own, its iteration included, under the same clip, groups and decay."""
    params, r = draw(0), rule(name, weight_decay=0.1, momentum=0.8)
    got = by_path(run(optim.make_optimizer(r), params, 4)[0])
    groups = optim.update_groups(r, params)
    decayed = jax.tree.map(lambda group: group == MATRIX, optim.parameter_groups(params))
    whole = optax.contrib.muon(
        0.02, beta=0.8, weight_decay=0.1, weight_decay_mask=decayed,
        adam_learning_rate=0.01, muon_weight_dimension_numbers=jax.tree.map(
            lambda group, axes: axes if group == MATRIX else None, groups, optim.muon_axes(params)
        ),
    )  # fmt: skip
    wanted = by_path(run(whole, params, 4)[0])
    for path, group in by_path(groups).items():
        if group == MATRIX:
            np.testing.assert_allclose(got[path], wanted[path], rtol=1e-9, atol=1e-12, err_msg=path)


def test_adamw_has_its_constants_behind_the_clip() -> None:
    """An eps that is no small number lets the length of the gradient matter."""
    params, grads = draw(0), draw(1)
    constants = {"b1": 0.5, "b2": 0.7, "eps": 0.3}
    optimizer = optim.make_optimizer(rule(weight_decay=0.0, grad_clip=0.5, **constants))
    plain = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.02, weight_decay=0.0, **constants))
    assert optax.global_norm(grads) > 1
    got, wanted = (by_path(run(each, params, 2)[0]) for each in (optimizer, plain))
    for path, leaf in wanted.items():
        np.testing.assert_allclose(got[path], leaf, rtol=1e-12, err_msg=path)
        assert np.abs(leaf - by_path(params)[path]).max() > 1e-5, path


@pytest.mark.parametrize("name", NAMES)
def test_momentum_in_bfloat16_takes_half_the_bytes_and_nearly_the_same_steps(name: str) -> None:
    """Second moments and M3's sums keep the parameters' type."""
    params = draw(0)
    (wanted, wide), (got, short) = (
        run(optim.make_optimizer(rule(name, weight_decay=0.0, momentum_dtype=dtype, adam_lr=0.02)), params, 4)
        for dtype in ("float32", "bfloat16")
    )
    moves = [optax.tree.sub(after, params) for after in (got, wanted)]
    apart = optax.tree.norm(optax.tree.sub(*moves)) / optax.tree.norm(moves[1])
    assert 1e-6 < float(apart) < 0.02
    types = [{path: leaf.dtype.name for path, leaf in named(state).items()} for state in (wide, short)]
    changed = {path: dtype for path, dtype in types[1].items() if dtype != types[0][path]}
    assert changed and set(changed.values()) == {"bfloat16"} and all(".mu." in path for path in changed)
    assert not [path for path, dtype in types[1].items() if ".mu." in path and dtype != "bfloat16"]


def test_a_second_moment_in_bfloat16_would_stand_still() -> None:
    """Why it has no key: after the gradient doubles it stays where it was."""
    update = optax.tree.update_moment_per_elem_norm
    second = {dtype: jnp.ones((), dtype) for dtype in ("float32", "bfloat16")}
    for _ in range(500):
        second = {d: update(jnp.full((), 1.4, d), v, 0.999, 2).astype(d) for d, v in second.items()}
    assert float(second["float32"]) > 1.35 and float(second["bfloat16"]) == 1.0


def test_schedules_end_at_a_tenth() -> None:
    def at(*steps: int, **values: Any) -> list[float]:
        fraction = optim.lr_fraction(rule(warmup_steps=2, **values))
        return [float(fraction(step)) for step in steps]

    end = np.cos(np.pi / 4) ** 2
    assert at(0, 1, 6, 10, schedule="cosine") == pytest.approx([0.5, 1, 0.1 + 0.9 * end, 0.1])
    assert at(0, 1, 6, 10, schedule="constant") == pytest.approx([0.5, 1, 1, 1])
    assert at(6, 8, 10, schedule="constant", cooldown_steps=4) == pytest.approx([1, 0.55, 0.1])


MEMORY_PATHS = ("blocks/cms", "blocks/titan", "blocks/self_mod")


@pytest.mark.parametrize("policy", ["memories_frozen", "backbone_frozen"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_policy_freezes_keeps_its_value_and_has_no_state(name: str, policy: str) -> None:
    params = draw(0)
    after, state = run(optim.make_optimizer(rule(name, param_policy=policy)), params, 2)
    for path, leaf in by_path(after).items():
        is_frozen = path.startswith(MEMORY_PATHS) == (policy == "memories_frozen")
        assert np.array_equal(leaf, by_path(params)[path]) == is_frozen, path
    _, everything = run(optim.make_optimizer(rule(name)), params, 1)
    trained = sum(leaf.size for path, leaf in by_path(params).items() if not np.array_equal(
        leaf, by_path(after)[path]))  # fmt: skip
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 3)
    assert 0 < moments <= 5 * trained
    assert moments < sum(leaf.size for leaf in jax.tree.leaves(everything) if leaf.size > 3)


def test_frozen_gradients_have_no_share_in_the_clipped_norm() -> None:
    params, grads = draw(0), draw(1)
    optimizer = optim.make_optimizer(rule(grad_clip=1.0, param_policy="memories_frozen"))
    blown = jax.tree.map(lambda g: g, grads)
    blown["blocks"]["cms"]["fast"]["w_up"] = 1e6 * grads["blocks"]["cms"]["fast"]["w_up"]
    steps = [optimizer.update(g, optimizer.init(params), params) for g in (grads, blown)]
    jax.tree.map(np.testing.assert_array_equal, steps[0], steps[1])


@pytest.mark.parametrize("name", NAMES)
def test_untrained_parameters_are_left_out_and_named(name: str) -> None:
    params, left_out = draw(0), ("blocks/titan/self_modifier", "embed")
    r = rule(name, weight_decay=0.5)
    after = by_path(run(optim.make_optimizer(r, left_out), params, 2)[0])
    same = {path for path, leaf in after.items() if np.array_equal(leaf, by_path(params)[path])}
    assert same == {"blocks/titan/self_modifier/w_in", "embed"}
    line = optim.describe_groups(r, params, left_out)
    assert "blocks/titan/self_modifier (144) receives no gradient" in line and "embed (36)" in line


def test_an_untrained_name_without_parameters_is_refused() -> None:
    # `blocks/titan/self` is the beginning of a name, not a name.
    for name in ("blocks/titan/self", "blocks/mlp"):
        with pytest.raises(ValueError, match=f"no parameter is called '{name}'"):
            optim.make_optimizer(rule(), (name,)).init(draw(0))


def test_the_log_line_counts_every_parameter_once() -> None:
    params = draw(0)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    groups = by_path(optim.parameter_groups(params))
    matrices = sum(by_path(params)[p].size for p, g in groups.items() if g == MATRIX)
    memories = sum(leaf.size for p, leaf in by_path(params).items() if p.startswith(MEMORY_PATHS))
    assert f"adamw updates {total:,} parameters" in optim.describe_groups(rule(), params)
    for name, count in (("muon_hybrid", matrices), ("m3", matrices), ("muon", matrices + 36)):
        line = optim.describe_groups(rule(name), params)
        assert f" updates {count:,} parameters" in line and f"adamw {total - count:,} (" in line
    line = optim.describe_groups(rule(param_policy="memories_frozen"), params)
    assert f"memories_frozen leaves {memories:,}" in line and f"adamw updates {total - memories:,} " in line


def test_frozen_is_a_group_of_its_own() -> None:
    groups = by_path(optim.update_groups(rule("muon", param_policy="backbone_frozen"), draw(0)))
    assert groups["embed"] == FROZEN and groups["blocks/titan/w_up"] == MATRIX
