"""Benchmarks of kernels, each beside what it replaces. Useful operations are stated for each;
`with_gradients` are three times those forward, and recomputation is not counted."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.kernels.attention import Sight, attend
from hope_jax.kernels.gated_deltanet import gated_delta
from hope_jax.memory import mlp_memory
from hope_jax.memory.initial import Initial, Params
from hope_jax.memory.level_write import LevelWriter, init_level, measured
from hope_jax.memory.levels import Level
from hope_jax.memory.period_write import LevelState, LevelTokens, PeriodWriter, WriteRules, settled
from hope_jax.memory.self_mod import SelfMod
from hope_jax.memory.state import own
from hope_jax.perf.timing import Case, Comparison, compiled

Cases = tuple[Case, ...]


def with_gradients(function: Callable[..., Any], by: tuple[int, ...]) -> Callable[..., Any]:
    """Gradients of the summed squares of all that a function returns, by the arguments of these numbers."""

    def total(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(function(*arguments))
        return sum(jnp.square(t).sum() for t in leaves if jnp.issubdtype(t.dtype, jnp.floating))

    return jax.grad(total, argnums=by)


def _forms(
    functions: Mapping[str, Callable[..., Any]],
    *arguments: Any,
    flops: float,
    tokens: int,
    by: tuple[int, ...] = (),
) -> Cases:
    """Ways of computing one thing, each a case, with gradients `by` these arguments if there are any."""
    timed = {name: with_gradients(form, by) if by else form for name, form in functions.items()}
    work: dict[str, Any] = {"flops": flops * (3 if by else 1), "tokens": tokens}
    return tuple(compiled(name, function, *arguments, **work) for name, function in timed.items())


def comparisons() -> Iterator[Comparison]:
    """Of every kernel."""
    for kind in ("forward", "gradients"):
        for documents in (1, 6):
            yield Comparison(f"attention/{kind}-documents{documents}", partial(_attention, kind, documents))
    for kind in ("forward", "gradient"):
        for tokens, batch in ((32, 1), (512, 1), (2048, 1), (512, 4)):
            name = f"gated_deltanet/{kind}-t{tokens}-b{batch}"
            yield Comparison(name, partial(_gated_deltanet, kind, batch, tokens))
    for kind in ("forward", "gradients"):
        for period in (1, 8):
            yield Comparison(f"cms_write/{kind}-p{period}-b1", partial(_cms_write, kind, period))
    for dim, tokens, batch in ((512, 512, 1), (512, 512, 4), (256, 512, 1), (512, 2048, 1)):
        yield Comparison(f"self_mod/d{dim}-t{tokens}-b{batch}", partial(_self_mod, dim, tokens, batch))


def _attention(kind: str, documents: int) -> Cases:
    """Causal attention of 2,048 tokens in so many documents of one length, 8 heads of 64: in one piece, and
    tile by tile. Operations of a token: 4 D for each of its earlier tokens, on average half of them."""
    tokens, keys = 2048, jax.random.split(jax.random.key(0), 3)
    given = [jax.random.normal(key, (1, tokens, 8, 64)) for key in keys]
    at = jnp.arange(tokens, dtype=jnp.int32)[None]
    sight = Sight(at, at, at * documents // tokens, at * documents // tokens)

    def form(twice: bool, sight: Sight, *given: jax.Array) -> jax.Array:
        return attend(*given, sight, window=0, aligned=True, twice=twice)

    return _forms(
        {"in one piece": partial(form, True), "tiles": partial(form, False)},
        sight,
        *given,
        flops=4.0 * 512 * tokens / documents / 2 * tokens,
        tokens=tokens,
        by=(1, 2, 3) if kind == "gradients" else (),
    )


def delta_by_token(
    q: jax.Array, k: jax.Array, v: jax.Array, log_alpha: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What `gated_delta` computes, as a scan over tokens."""

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, log_alpha, beta = token
        state = jnp.exp(log_alpha)[:, None, None] * state
        u = beta[:, None] * (v - jnp.einsum("hkv,hk->hv", state, k))
        state = state + k[:, :, None] * u[:, None]
        return state, jnp.einsum("hkv,hk->hv", state, q)

    state, o = jax.lax.scan(step, state, (q, k, v, log_alpha, beta))
    return o, state


def delta_inputs(batch: int, n: int, heads: int, size: int) -> tuple[jax.Array, ...]:
    """Of a layer at its start: unit keys, alpha around 0.9, states that are not zero."""
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v = (jax.random.normal(key, (batch, n, heads, size)) for key in keys[:3])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    log_alpha = -0.2 * jax.random.uniform(keys[3], (batch, n, heads))
    beta = jax.random.uniform(keys[4], (batch, n, heads))
    return q, k, v, log_alpha, beta, jax.random.normal(keys[5], (batch, heads, size, size))


def _gated_deltanet(kind: str, batch: int, tokens: int) -> Cases:
    """The gated delta rule in chunks over the rule token by token, 8 heads with K = V = 64. Operations of a
    token and head: 4 K V for its read and its write, 2 K V for what the write replaces."""
    chunks = {f"chunks of {n}": jax.vmap(partial(gated_delta, chunk=n)) for n in (64, 32, 128)}
    return _forms(
        {"token by token": jax.vmap(delta_by_token), **chunks},
        *delta_inputs(batch, tokens, 8, 64),
        flops=6.0 * 64 * 64 * 8 * batch * tokens,
        tokens=batch * tokens,
        by=tuple(range(6)) if kind == "gradient" else (),
    )


class _Dense(LevelWriter):
    """Periods one after the other, each with its gradient matrices and a step of the inner optimizer."""

    def write_periods(self, state: LevelState, by_period: Any) -> Any:
        return PeriodWriter.write_periods(self, state, by_period)


def written(
    writer: type[LevelWriter], spec: Level, params: Any, state: LevelState, *given: Any
) -> LevelState:
    """The state after one sequence. given: delta and average to begin with, x and teach signal [T, D]."""
    norms, active = mlp_memory.group_norms(params), jnp.ones(32, bool)
    delta, ema, *streams = given
    state = state._replace(delta=delta, opt=(*state.opt[:-1], state.opt[-1]._replace(ema=ema)))
    state = measured(state)

    def step(state: LevelState, xs: Any) -> tuple[LevelState, None]:
        factors = mlp_memory.write_factors(params, state.delta, mlp_memory.normalise(params, xs[0]), xs[1])
        tokens = LevelTokens(factors, active, jnp.ones(32), active)
        one = writer(WriteRules(32), spec, params, norms, own)
        return settled(one.write(state, tokens, jnp.int32(0), False)[0]), None

    return jax.lax.scan(step, state, [t.reshape(-1, 32, t.shape[-1]) for t in streams])[0]


def write_inputs(spec: Level, dim: int, tokens: int) -> tuple[Any, ...]:
    """What `written` is given after its writer and level: parameters, state, delta, average, inputs and teach
    signal."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w_up": jax.random.normal(keys[0], (dim, 4 * dim)) / dim**0.5,
        "w_down": jax.random.normal(keys[1], (4 * dim, dim)) / (4 * dim) ** 0.5,
        "ln_scale": jnp.ones(dim),
        "ln_bias": jnp.zeros(dim),
    }
    state = init_level(spec, params, WriteRules(32))
    x = jax.random.normal(keys[2], (tokens, dim))
    teach = 0.1 * jax.random.normal(keys[3], x.shape)
    return params, state, state.delta, state.opt[-1].ema, x, teach


def _cms_write(kind: str, period: int) -> Cases:
    """CMS writes of one level over a sequence of 256 tokens, from its inputs and teach signal to its new
    state.

    Width D 256, hidden H 1024, chunks of 32 in a scan; the inner optimizer averages with beta 0.9, both
    bounds are on, statistics are not taken. `gram` is the closed form. `gradients`: by inputs, teach
    signals and starting state, through the writes. Operations of a token: 4 products with a D x H matrix
    (pre-activation, pull-back through W_down, an outer product a matrix). Not counted: the split of a read
    into slow weights and delta, what the velocity and the bounds need."""
    spec, dim, tokens = Level(period, 0.03), 256, 256
    writers = {"dense": _Dense, "gram": LevelWriter}
    return _forms(
        {name: partial(written, writer, spec) for name, writer in writers.items()},
        *write_inputs(spec, dim, tokens),
        flops=2.0 * dim * 4 * dim * 4 * tokens,
        tokens=tokens,
        by=(2, 3, 4, 5) if kind == "gradients" else (),
    )


def self_mod_params(dim: int) -> Any:
    """One layer's parameters at their start: slow decay, so that weights stay alive."""
    entries = SelfMod(dim=dim, local_conv_window=0).entries(Initial(True, 1, jnp.dtype("float32")))
    return Params(entries, jnp.float32).init(jax.random.key(0))["params"]


def self_mod_pass(params: Any, x_btd: jax.Array) -> jax.Array:
    """Outputs [B, T, D] of sequences [B, T, D], each with memories of its own, in online chunks of 64."""
    memory = SelfMod(dim=x_btd.shape[-1], online_chunk=64, local_conv_window=0)
    return jax.vmap(lambda x_td: memory.read(params, memory.init(params), None, x_td, position=0)[0])(x_btd)


def _self_mod(dim: int, tokens: int, batch: int) -> Cases:
    """Self-modifying Titans: the pass over a sequence with its writes, forward and through the writes.

    Operations of a token: 72 D^2 (36 products with D x D matrices, as in `hope_jax.models.flops`). The
    backward's memory grows with T by what a block of `chunk_pass.BLOCK_TOKENS` saves: its first weights (all
    memories together 8 D^2 and a little) and the results of the products of its tokens (about 29 D a token).
    """
    x_btd = jax.random.normal(jax.random.key(1), (batch, tokens, dim))
    arguments, tokens = (self_mod_params(dim), x_btd), tokens * batch
    flops = 72.0 * dim * dim * tokens
    gradient = with_gradients(self_mod_pass, (0, 1))
    return (
        compiled("forward", self_mod_pass, *arguments, flops=flops, tokens=tokens),
        compiled("forward + backward", gradient, *arguments, flops=3 * flops, tokens=tokens),
    )
