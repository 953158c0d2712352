"""Tiles against one piece and against the naive model's loop; what is chosen by dtype, shape and platform."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.attention import Sight, attend, forms
from hope_jax.kernels.attention.forms import attend_plain

HEADS, WIDTH = 2, 6
CASES = [(37, 37, 0, 0), (37, 37, 0, 5), (21, 53, 32, 0), (21, 53, 7, 12)]
"""Queries, keys, position of the first query, window."""


def case(
    queries: int, keys: int, position: int, dtype: str = "float64", documents: int = 3
) -> tuple[list[jax.Array], Sight]:
    """Query, key, value and a cotangent; documents of other lengths in each row, that end in padding; keys
    that are not there."""
    rng = np.random.default_rng(queries)
    shapes = [(2, length, HEADS, WIDTH) for length in (queries, keys, keys, queries)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    of = np.sort(rng.integers(1, 1 + documents, size=(2, keys)))
    of[0, keys - 4 :] = 0
    own = of[:, position : position + queries]
    if position:
        of[1, : position // 2] = -1
    at = np.arange(keys, dtype=np.int32)
    return arrays, Sight(*map(jnp.asarray, (at[None, position : position + queries], at[None], own, of)))


def naive(query: Any, key: Any, value: Any, sight: Sight, window: int) -> np.ndarray:
    """Query by query, over a list of the keys that it sees."""
    query, key, value = map(np.asarray, (query, key, value))
    out = np.zeros_like(query)
    for b, i in np.ndindex(*query.shape[:2]):
        at, of = int(sight.query_at[0, i]), int(sight.queries_of[b, i])
        places = enumerate(zip(np.asarray(sight.key_at[0]), np.asarray(sight.keys_of[b]), strict=True))
        seen = [j for j, (k, d) in places if k <= at and (not window or k > at - window) and d == of]
        weights = np.exp(np.einsum("hk,mhk->hm", query[b, i], key[b, seen]) / np.sqrt(WIDTH))
        out[b, i] = np.einsum("hm,mhk->hk", weights / weights.sum(-1, keepdims=True), value[b, seen])
    return out


def output_and_gradients(form: Callable[..., Any], arrays: list[jax.Array]) -> list[jax.Array]:
    *given, cotangent = arrays
    out, pull = jax.vjp(form, *given)
    return [out, *pull(cotangent)]


def assert_alike(got: list[jax.Array], want: list[jax.Array], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert float(jnp.abs(jnp.asarray(b)).max()) > 0.1
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("queries", "keys", "position", "window"), CASES)
def test_tiles_are_attention_in_one_piece(
    queries: int, keys: int, position: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that divide no length; some tiles in which nothing is seen."""
    monkeypatch.setattr(forms, "BLOCK", 8)
    arrays, sight = case(queries, keys, position)
    aligned = queries == keys
    got = output_and_gradients(lambda *a: forms.attend_in_blocks(*a, sight, window, aligned), arrays)
    want = output_and_gradients(lambda *a: attend_plain(*a, sight.mask(window)), arrays)
    assert_alike(got, want, 1e-12)
    np.testing.assert_allclose(want[0], naive(*arrays[:3], sight, window), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_tiles_in_other_precisions(dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "BLOCK", 16)
    arrays, sight = case(37, 37, 0, dtype)
    got = output_and_gradients(lambda *a: forms.attend_in_blocks(*a, sight, 0, True), arrays)
    wide = [t.astype(float) for t in arrays]
    assert_alike(got, output_and_gradients(lambda *a: attend_plain(*a, sight.mask(0)), wide), tolerance)


def test_only_tiles_that_may_be_seen_are_walked() -> None:
    size = 4 * forms.BLOCK
    options = (0, False), (0, True), (1, True), (2, True), (forms.BLOCK + 1, True)
    assert [len(forms.tiles_of(size, size, *each)) for each in options] == [16, 10, 4, 7, 7]


@pytest.mark.parametrize("twice", [False, True])
def test_no_array_is_queries_by_keys_unless_it_is_differentiated_twice(twice: bool) -> None:
    arrays, sight = case(600, 600, 0, "float32")

    def gradients(*given: jax.Array) -> Any:
        return output_and_gradients(
            lambda *a: attend(*a, sight, window=0, aligned=True, twice=twice), list(given)
        )

    assert ("600,600" in jax.jit(gradients).lower(*arrays).as_text(dialect="hlo")) == twice


def test_second_derivatives() -> None:
    arrays, sight = case(37, 37, 0)

    def squared(query: jax.Array) -> jax.Array:
        def total(q: jax.Array) -> jax.Array:
            return attend(q, *arrays[1:3], sight, window=0, aligned=True, twice=True).sum()

        return (jax.grad(total)(query) ** 2).sum()

    direction = arrays[3]
    step = 1e-5
    up, down = (squared(arrays[0] + sign * step * direction) for sign in (1, -1))
    got = (jax.grad(squared)(arrays[0]) * direction).sum()
    np.testing.assert_allclose(got, (up - down) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "queries", "width", "taken"),
    [
        ("bfloat16", 512, 64, True),
        ("float16", 512, 128, True),
        ("float32", 512, 64, False),
        ("bfloat16", 511, 64, False),
        ("bfloat16", 512, 136, False),
        ("bfloat16", 512, 12, False),
    ],
)
def test_what_cudnn_takes(dtype: str, queries: int, width: int, taken: bool) -> None:
    query, key = (jax.ShapeDtypeStruct((2, n, 4, width), jnp.dtype(dtype)) for n in (queries, 2048))
    assert forms.cudnn_takes(query, key) == taken


def test_the_form_is_read_off_the_program() -> None:
    call = 'custom-call(%q), custom_call_target="__cudnn$fmhaScaleBiasSoftmax"'
    assert forms.form_in(f"{call}\n{call}Backward") == "cuDNN, 2 calls in the program"
    assert forms.form_in('custom_call_target="__cublas$lt$matmul"') == "XLA"
