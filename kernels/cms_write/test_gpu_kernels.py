"""The Pallas kernels in the interpreter against the plain forms that their derivatives come from: values and
gradients, float32 and bfloat16 rows, ragged lengths, periods that are not written."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.cms_write import kept, states
from hope_jax.kernels.on_gpu import with_kernel

BATCH = 2


def close(got: Any, want: Any, tolerance: float) -> None:
    """Largest error over the largest entry, of each leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-6)


def updates(tokens: int, matrices: int, dtype: str, sides: tuple[int, int] = (64, 32)) -> tuple[Any, ...]:
    """Arguments of `advance` of examples of which the first writes nothing."""
    rng, (inputs, outputs) = np.random.default_rng(tokens), sides

    def draw(*shape: int, dtype: str = "float32") -> jax.Array:
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), dtype)

    written = jnp.arange(BATCH) > 0
    on = written[:, None, None]
    mix = jnp.where(on, draw(matrices, matrices), jnp.eye(matrices, dtype="float32"))
    weights = jnp.where(on, draw(matrices, tokens), 0)
    old = tuple(draw(inputs, outputs) for _ in range(matrices))
    x, g = draw(tokens, inputs, dtype=dtype), draw(tokens, outputs, dtype=dtype)
    return old, x, g, (mix, weights, written)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("tokens", "dtype"), [(7, "float32"), (48, "bfloat16"), (130, "bfloat16")])
def test_advance(tokens: int, dtype: str, keep: bool) -> None:
    given = updates(tokens, 2, dtype)
    narrow = jnp.dtype("bfloat16") if dtype == "bfloat16" else None
    form = partial(states.advance_kernel, narrow=narrow, keep=keep, interpret=True)
    got, want = jax.vmap(form)(*given), jax.vmap(partial(states.plain_advance, narrow=narrow))(*given)
    if keep:
        got, kept = got
        jax.tree.map(np.testing.assert_array_equal, kept, given)
    (new, gram, rounded), (_, wanted, _) = got, want
    close(new, want[0], 1e-6)
    close(gram[1:], wanted[1:], 1e-6)
    # An example that writes nothing keeps its matrices to the last bit.
    for one, old in zip(new, given[0], strict=True):
        np.testing.assert_array_equal(one[0], old[0])
    assert (rounded is None) == (narrow is None)
    if narrow is not None:
        np.testing.assert_array_equal(rounded, new[0].astype(narrow))


def value(function: Any, at: Any) -> jax.Array:
    """A form in every entry of the function's result."""
    leaves = jax.tree.leaves(function(*at))
    return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)


def steepness(function: Any, at: Any) -> jax.Array:
    """The squared slope of `value`."""
    return sum(jnp.sum(t**2) for t in jax.tree.leaves(jax.grad(partial(value, function))(at)))


@pytest.mark.parametrize("name", ["advance", "products"])
def test_derivatives_of_what_gpus_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second derivatives of the kernels, which write over their arguments, in the interpreter."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, cuda, default: cuda(*given))
    matrices, x, g, (mix, weights, written) = jax.tree.map(lambda t: t[1], updates(8, 2, "float32"))
    kernels = {"advance": states.advance_kernel, "products": states.products_kernel}
    kernel = partial(kernels[name], interpret=True)
    plain = {"advance": states.plain_advance, "products": states.plain_products}[name]
    function, naive = (
        with_kernel(kernel, plain, partial(kernel, keep=True) if name == "advance" else None),
        plain,
    )
    at: Any = matrices, x, g
    if name == "advance":
        at = *at, (mix, weights)
        function, naive = (
            lambda m, x, g, update, f=f: f(m, x, g, (*update, written))[:2] for f in (function, plain)
        )
    for form in (value, steepness):
        close(*(jax.grad(partial(form, f))(at) for f in (function, naive)), 1e-4)


def test_advance_leaves_what_it_does_not_take_to_the_plain_form() -> None:
    odd = updates(8, 1, "float32", (7, 32))
    np.testing.assert_array_equal(
        *(jax.vmap(form)(*odd)[0][0] for form in (states.advance_kernel, states.plain_advance))
    )


@pytest.mark.parametrize(("tokens", "dtype"), [(7, "float32"), (48, "bfloat16"), (130, "bfloat16")])
def test_products(tokens: int, dtype: str) -> None:
    matrices, x, g, _ = updates(tokens, 2, dtype)
    got = jax.vmap(partial(states.products_kernel, interpret=True))(matrices, x, g)
    close(got, jax.vmap(states.plain_products)(matrices, x, g), 1e-6)


def recursion(periods: int, bound: float) -> tuple[jax.Array, ...]:
    """Arguments of `kept` of vectors that a bound of 7 meets now and then."""
    rng = np.random.default_rng(periods)
    applied = rng.random((BATCH, periods)) > 0.2
    writes = 0.3 * rng.normal(size=(BATCH, periods, 40)) * applied[..., None]
    start = rng.normal(size=(BATCH, 40))
    given = (
        (start**2).sum(1),
        np.einsum("bk,bpk->bp", start, writes),
        np.einsum("bpk,bqk->bpq", writes, writes),
        applied,
        np.full(BATCH, bound),
    )
    return tuple(jnp.asarray(t, bool if t.dtype == bool else "float32") for t in given)


@pytest.mark.parametrize(("periods", "bound"), [(64, 7.0), (40, 7.0), (1, 2.0), (8, 1e30)])
def test_kept(periods: int, bound: float) -> None:
    given = recursion(periods, bound)
    got = jax.vmap(partial(kept.kernel, interpret=True))(*given)
    want = jax.vmap(kept.plain)(*given)
    close(got, want, 1e-6)
    assert bool(got[1].any()) == (bound < 10)
    cotangents = jnp.asarray(np.random.default_rng(1).normal(size=(2, BATCH, periods)), "float32")

    def plain_gradient(given: Any, *cotangents: jax.Array) -> Any:
        """Of all but `applied`."""

        def floats(square: Any, along: Any, gram: Any, bound: Any) -> Any:
            factors, _, sizes = kept.plain(square, along, gram, given[3], bound)
            return factors, sizes

        return jax.vjp(floats, *given[:3], given[4])[1](cotangents)

    forms = partial(kept.kernel_gradient, interpret=True), plain_gradient
    close(*(jax.vmap(form)(given, *cotangents) for form in forms), 2e-6)
