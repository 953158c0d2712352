"""Cross-entropy with its cotangents, over autodiff of a loss of whole logits; vocabulary 32,000, width 512.

`gradients`: by hidden states and head, as a train step takes them; `signal`: by hidden states, as a read that
only teaches does; `loss`: as an evaluation does. Useful operations: 2 V D a product and token, of three, two
and one products with the head.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.kernels.xent_teach import cross_entropy, logits_of
from hope_jax.perf.timing import Case, Comparison, Goal, forms

VOCAB, DIM = 32_000, 512

KINDS: dict[str, tuple[int, Callable[..., Any]]] = {
    "gradients": (3, partial(jax.value_and_grad, argnums=(0, 1))),
    "signal": (2, jax.value_and_grad),
    "loss": (1, lambda loss: loss),
}
"""Name -> products with the head, and what makes the timed function of a loss."""


def _plain(hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array) -> jax.Array:
    logits = logits_of(hidden_btd, head_vd)
    chosen = jnp.take_along_axis(logits, targets_bt[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).sum()


def _blocks(hidden_btd: jax.Array, head_vd: jax.Array, targets_bt: jax.Array) -> jax.Array:
    return cross_entropy(hidden_btd, head_vd, targets_bt).total


def _cases(kind: str, batch: int, tokens: int) -> tuple[Case, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (batch, tokens, DIM))
    head = 0.05 * jax.random.normal(keys[1], (VOCAB, DIM))
    targets = jax.random.randint(keys[2], (batch, tokens), 0, VOCAB)
    products, transform = KINDS[kind]
    return forms(
        {"whole logits": transform(_plain), "blocks": transform(_blocks)},
        *(hidden, head, targets),
        flops=2.0 * VOCAB * DIM * products * batch * tokens,
        tokens=batch * tokens,
        goals=(Goal("ratio", 1.0),),
    )


def comparisons() -> Iterator[Comparison]:
    """An online chunk of the pilot (6 x 32), one sequence of 256, and long ones."""
    sizes = (("gradients", 6, 32), ("gradients", 1, 256), ("gradients", 1, 2048))
    for kind, batch, tokens in (*sizes, ("signal", 1, 2048), ("loss", 1, 2048)):
        yield Comparison(f"xent_teach/{kind}-b{batch}-t{tokens}", partial(_cases, kind, batch, tokens))
