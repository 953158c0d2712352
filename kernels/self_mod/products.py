"""Products of a few rows with the big matrices of a group, and how their cotangents are gathered.

A chunk multiplies each matrix W with several sets of rows, one after the other: what it reads, its keys and
values, its errors. The gradient of W is the sum over these products of an outer product each; taken one by
one, as JAX's derivative does, each is a pass over the whole matrix. So `Recorded` keeps the results of a
chunk's products, `Replayed` gives them out again as the variables that the rest of the chunk is
differentiated by, and `joined` turns all that concerns one matrix into a single product.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.group import Stacked


class Group(NamedTuple):
    """Weights and momentum buffers (None without momentum)."""

    weights: Stacked
    momentum: Stacked | None


Key: TypeAlias = tuple[str, int]
"""("weights" or "momentum", index in `Stacked.matrices`)."""

ROWS: Key = ("weights", 0)
MOMENTUM_ROWS: Key = ("momentum", 0)


def matrices_of(group: Group) -> dict[Key, jax.Array]:
    """All of a group's."""
    kinds = {name: stacked for name, stacked in group._asdict().items() if stacked is not None}
    return {(name, i): w for name, stacked in kinds.items() for i, w in enumerate(stacked.matrices())}


def wide(x: jax.Array) -> jax.Array:
    """In at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def through(w: jax.Array, x: jax.Array) -> jax.Array:
    """x w^T for few rows x [n, I] and w [O, I]: [n, O], multiplied in x's dtype, in at least float32.

    As w x^T, with the transposed x fenced off: XLA would fold the transposes into one product again, which
    on CPU is half as fast at 8 rows.
    """
    few = jax.lax.optimization_barrier(x.T)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.optimization_barrier(jnp.matmul(w.astype(x.dtype), few, preferred_element_type=dtype)).T


def back(w: jax.Array, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """d w for few rows d [n, O] and w [O, I]: [n, I], multiplied in `dtype`, in at least float32."""
    wanted = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(d.astype(dtype), w.astype(dtype), preferred_element_type=wanted)


def once_done(x: jax.Array, done: list[jax.Array]) -> jax.Array:
    """x [], as a value that is not known before the products `done` are. Where all products with an old
    matrix come before it is overwritten, XLA need not copy it; a barrier is gone before XLA decides that."""
    return x + sum((0.0 * product[0, 0] for product in done), jnp.zeros(())).astype(x.dtype)


class Factored(NamedTuple):
    """The matrix scale * base - sum over chunks c and their rows r of weight_c left_r^T right_r.

    base: [O, I]; left, right: [chunks n, O] and [chunks n, I]; scale: []; weight: [chunks].
    """

    base: jax.Array
    left: jax.Array
    right: jax.Array
    scale: jax.Array
    weight: jax.Array

    def through(self, x: jax.Array, of_base: jax.Array | None = None) -> jax.Array:
        """See `through`. of_base: the same of `base` alone, where it is known."""
        of_base = through(self.base, x) if of_base is None else of_base
        inside = _by_row(self.weight, self.right) * back(self.right.T, x, x.dtype)
        return self.scale.astype(of_base.dtype) * of_base - back(self.left, inside, inside.dtype)

    def back(self, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        inside = _by_row(self.weight, self.left) * back(self.left.T, d, self.left.dtype)
        of_base = back(self.base, d, dtype)
        return self.scale.astype(of_base.dtype) * of_base - back(self.right, inside, dtype)

    def dense(self) -> jax.Array:
        """As one array, in the dtype of `base`."""
        left = _by_row(self.weight, self.left)[:, None] * self.left
        return self.scale.astype(self.base.dtype) * self.base - outer(left, self.right, self.base.dtype)


class Beside(NamedTuple):
    """A `Factored` matrix that one product serves. beside: [O, I + chunks n], base and left^T in one."""

    beside: jax.Array
    right: jax.Array
    scale: jax.Array
    weight: jax.Array

    def through(self, x: jax.Array) -> jax.Array:
        """See `through`."""
        inside = -_by_row(self.weight, self.right) * back(self.right.T, x, x.dtype)
        return through(self.beside, jnp.concatenate([self.scale * wide(x), inside], 1).astype(x.dtype))

    def back(self, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        base, left = jax.lax.split(
            back(self.beside, d, dtype), [self.right.shape[1], self.right.shape[0]], axis=1
        )
        inside = _by_row(self.weight, self.right) * left
        return self.scale.astype(base.dtype) * base - back(self.right, inside, dtype)


def _by_row(weight: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.repeat(weight, len(rows) // max(1, len(weight)))


Matrix: TypeAlias = jax.Array | Factored | Beside


def _through(w: Matrix, x: jax.Array) -> jax.Array:
    return through(w, x) if isinstance(w, jax.Array) else w.through(x)


def _back(w: Matrix, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return back(w, d, dtype) if isinstance(w, jax.Array) else w.back(d, dtype)


def outer(left: jax.Array, right: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """sum_t left_t right_t^T in `dtype`, multiplied in right's dtype."""
    return jnp.matmul(left.astype(right.dtype).T, right, preferred_element_type=dtype)


class Products:
    """The products of one chunk with the matrices of a group."""

    def __init__(self, group: Group | Mapping[Key, Matrix]) -> None:
        self._matrices = matrices_of(group) if isinstance(group, Group) else group
        self.momentum = MOMENTUM_ROWS in self._matrices

    def through(self, key: Key, x: jax.Array) -> jax.Array:
        """See `through`."""
        return _through(self._matrices[key], x)

    def back(self, key: Key, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        return _back(self._matrices[key], d, dtype)


class Recorded(Products):
    """Products whose results are kept, in the order of the calls. of_base: the first one's with a `Factored`
    matrix's base, where it is known."""

    def __init__(self, group: Group | Mapping[Key, Matrix], of_base: jax.Array | None = None) -> None:
        super().__init__(group)
        self.results: list[jax.Array] = []
        self._of_base = of_base

    def through(self, key: Key, x: jax.Array) -> jax.Array:
        """See `through`."""
        matrix = self._matrices[key]
        if self._of_base is not None and not self.results and isinstance(matrix, Factored):
            self.results.append(matrix.through(x, self._of_base))
        else:
            self.results.append(super().through(key, x))
        return self.results[-1]

    def back(self, key: Key, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        self.results.append(super().back(key, d, dtype))
        return self.results[-1]


class Repeated(Products):
    """The same calls again: results come from a record, whatever is multiplied."""

    def __init__(self, matrices: Group | Mapping[Key, Matrix], results: list[jax.Array]) -> None:
        super().__init__(matrices)
        self._rest = iter(results)

    def through(self, key: Key, x: jax.Array) -> jax.Array:
        """See `through`."""
        return next(self._rest)

    def back(self, key: Key, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        return next(self._rest)


class Replayed(Products):
    """The same calls again: results come from a record and are differentiated as variables, rows in the usual
    way. The matrices are constants, and needed for derivatives alone: see `joined`.

    Only for `jax.vjp`: a derivative from outside would count what results and rows have in common twice.
    """

    def __init__(self, matrices: Mapping[Key, Matrix], results: list[jax.Array]) -> None:
        super().__init__(matrices)
        self.results, self.rows = list(results), list[jax.Array]()
        self.keys: list[tuple[Key, bool]] = []

    def through(self, key: Key, x: jax.Array) -> jax.Array:
        """See `through`."""
        return self._again(key, x, True)

    def back(self, key: Key, d: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `back`."""
        return self._again(key, d.astype(dtype), False)

    def _again(self, key: Key, rows: jax.Array, is_through: bool) -> jax.Array:
        result = self.results[len(self.keys)]
        self.keys.append((key, is_through))
        self.rows.append(rows)
        known = _known_through if is_through else _known_back
        return known(result, self._matrices[key], rows)


@jax.custom_vjp
def _known_through(result: jax.Array, w: Matrix, x: jax.Array) -> jax.Array:
    del w, x
    return result


@jax.custom_vjp
def _known_back(result: jax.Array, w: Matrix, d: jax.Array) -> jax.Array:
    del w, d
    return result


def _keep(result: jax.Array, w: Matrix, rows: jax.Array) -> tuple[jax.Array, tuple[Matrix, jax.Array]]:
    return result, (w, jnp.zeros((0,), rows.dtype))


def _pull_through(kept: tuple[Matrix, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    w, like = kept
    return cotangent, None, _back(w, cotangent, like.dtype).astype(like.dtype)


def _pull_back(kept: tuple[Matrix, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    w, like = kept
    return cotangent, None, _through(w, cotangent.astype(like.dtype)).astype(like.dtype)


_known_through.defvjp(_keep, _pull_through)
_known_back.defvjp(_keep, _pull_back)


def joined(
    keys: list[tuple[Key, bool]], rows: list[jax.Array], cotangents: list[jax.Array]
) -> dict[Key, tuple[jax.Array, jax.Array]]:
    """Per matrix (left [n, O], right [n, I]): the products' share of its cotangent is left^T right.

    keys: of each product, whether it was `through`. rows: what the matrix was multiplied with.
    """
    found: dict[Key, list[tuple[jax.Array, jax.Array]]] = {}
    for (key, is_through), row, cotangent in zip(keys, rows, cotangents, strict=True):
        low = cotangent.astype(row.dtype)
        found.setdefault(key, []).append((low, row) if is_through else (row, low))
    return {
        key: (jnp.concatenate([p[0] for p in pairs]), jnp.concatenate([p[1] for p in pairs]))
        for key, pairs in found.items()
    }
