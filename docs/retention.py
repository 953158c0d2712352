"""How long untrained self-modifying Titans keep what one chunk wrote: prints the
table of docs/memory.md. Text: the embedded corpus, through the embedded tokenizer.

python docs/retention.py
"""

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import assemble
from hope_jax.config import experiment as config
from hope_jax.core import trees
from hope_jax.data.corpus import load_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.models.spec import Architecture

jax.config.update("jax_enable_x64", True)

DIM, LAYERS, CALL = 64, 2, 64
BIASES = (5.0, 6.0, 7.0, 8.0, 9.0)
LATER = (64, 1024)

_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@lru_cache
def text(tokens: int) -> np.ndarray:
    """The first token ids [tokens] of the corpus."""
    tokenizer, found = Tokenizer.load(), []
    for document in load_documents("embedded"):
        found.append(tokenizer.encode(document.text))
        if sum(map(len, found)) >= tokens:
            break
    return np.concatenate(found)[:tokens]


def make_model(style: str, eta_scale: float) -> HopeModel:
    """hope_selfmod with LAYERS layers, in float64."""
    model = Architecture(
        block_variant="hope_selfmod",
        style=style,  # type: ignore[arg-type]
        vocab_size=Tokenizer.load().vocab_size,
        dim=DIM,
        num_layers=LAYERS,
        heads=4,
    )
    own = SelfModifyingTitans(eta_scale=eta_scale)
    train = config.TrainConfig(online_chunk_size=CALL, compute_dtype="float64")
    return HopeModel(
        assemble.model_spec(config.ExperimentConfig(model=model, train=train, self_modifying_titans=own))
    )


def set_leaf(params: Any, path: tuple[str, ...], value: float) -> Any:
    """The blocks' parameters with every entry of one of them set to `value`."""
    blocks = params["blocks"]
    for key in path:
        blocks = blocks[key]
    new: Any = jnp.full_like(blocks, value)
    for depth in range(len(path) - 1, -1, -1):
        parent = params["blocks"]
        for key in path[:depth]:
            parent = parent[key]
        new = {**parent, path[depth]: new}
    return {**params, "blocks": new}


def stream(model: HopeModel, params: Any, fast: Any, tokens: jax.Array, summary: Any) -> Any:
    """Reads [B, n CALL] tokens in n calls; `summary(memories)` after each, leaves [n, ...]."""

    def call(crossing: tuple[Any, Carry], piece: jax.Array) -> tuple[tuple[Any, Carry], Any]:
        fast, carry = crossing
        read = model.read(params, fast, carry, piece, jnp.ones_like(piece))
        return (read.fast, read.carry), summary(trees.stack(read.fast)["self_mod"].weights)

    batch, length = tokens.shape
    pieces = tokens.reshape(batch, length // CALL, CALL).swapaxes(0, 1)
    return jax.lax.scan(call, (fast, model.init_carry(batch, length)), pieces)[1]


def norms(memory: Any) -> jax.Array:
    """Frobenius norm [L, B] of all matrices of one memory together, leaves [L, B, ...]."""
    squares = (jnp.square(leaf).sum(tuple(range(2, leaf.ndim))) for leaf in jax.tree.leaves(memory))
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def written_once(model: HopeModel, still: HopeModel, params: Any, tokens: jax.Array) -> Any:
    """Memories of contexts that differ in one write of one memory of one layer.

    still: the same model with eta = 0: a chunk makes its memories decay, and writes nothing. Context 0 is in
    that state everywhere; context 1 + i LAYERS + l has memory i (by name) of layer l as the first chunk
    wrote it.
    """
    rule = model.spec.self_mod
    names = sorted((*rule.generator_names(), "memory"))
    made: dict[str, Any] = {}
    for index, name in enumerate(names):
        chunk = rule.chunk_size_memory if name == "memory" else rule.chunk_size
        with_write, without = (_after(m, params, tokens[None, :chunk])[name] for m in (model, still))

        def spread(a: jax.Array, b: jax.Array, first: int = 1 + index * LAYERS) -> jax.Array:
            all_b = jnp.repeat(b, 1 + LAYERS * len(names), axis=1)
            for layer in range(LAYERS):
                all_b = all_b.at[layer, first + layer].set(a[layer, 0])
            return all_b

        made[name] = jax.tree.map(spread, with_write, without)
    return made


def _after(model: HopeModel, params: Any, tokens: jax.Array) -> Any:
    fast = model.init_fast_state(params, 1)
    after = model.read(params, fast, None, tokens, jnp.ones_like(tokens)).fast
    return trees.stack(after)["self_mod"].weights


def changes(weights: Any) -> jax.Array:
    """Distance of each written memory from context 0's, [memories x layers], ordered as in `written_once`."""
    out = []
    for index, name in enumerate(sorted(weights)):
        apart = norms(jax.tree.map(lambda leaf: leaf - leaf[:, :1], weights[name]))
        out += [apart[layer, 1 + index * LAYERS + layer] for layer in range(LAYERS)]
    return jnp.stack(out)


@partial(_jit, static_argnums=(0, 1))
def left(model: HopeModel, still: HopeModel, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of each write, and of all first weights, that is left after LATER tokens: [len(LATER), ...]."""
    weights = written_once(model, still, params, tokens)
    contexts = jax.tree.leaves(weights)[0].shape[1]
    fast = model.init_fast_state(params, contexts)
    by_layer = zip(fast, trees.unstack(weights, LAYERS), strict=True)
    fast = tuple({**f, "self_mod": f["self_mod"]._replace(weights=w)} for f, w in by_layer)
    after = jnp.broadcast_to(tokens[CALL:], (contexts, len(tokens) - CALL))

    def summary(weights: Any) -> tuple[jax.Array, jax.Array]:
        return changes(weights), jnp.stack([norms(memory)[:, 0] for memory in weights.values()])

    written, held = stream(model, params, fast, after, summary)
    at = np.array(LATER) // CALL - 1
    start, first = summary(weights)
    return written[at] / start, held[at] / first


def _cells(found: np.ndarray) -> list[str]:
    """Median (least - most) over memories and layers, for each of LATER."""
    return [f"{np.median(row):.2g} ({row.min():.2g} - {row.max():.2g})" for row in found]


def retention() -> str:
    """What is left of a write, for each first bias of the modern style and for the reference style."""
    tokens = jnp.asarray(text(CALL + LATER[-1]))
    rows = []
    for style, biases in (("modern", BIASES), ("reference", (0.0,))):
        model, still = (make_model(style, eta_scale) for eta_scale in (1e-3, 0.0))
        params = model.init_params(jax.random.key(0))
        for bias in biases:
            if style == "modern":
                params = set_leaf(params, ("self_mod", "b_alpha"), bias)
            written, held = map(np.asarray, left(model, still, params, tokens))
            alpha = 1 / (1 + np.exp(-bias))
            name = f"modern, {bias:g}" if style == "modern" else "reference"
            arithmetic = ", ".join(f"{alpha**n:.2g}" for n in LATER)
            rows.append([name, f"{alpha:.5f}", *_cells(written), f"{np.median(held[1]):.2g}", arithmetic])
    head = ["style, bias", "alpha", *(f"left after {n}" for n in LATER), "first weights", "alpha^n"]
    return _table(head, rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    print(retention())
