"""Useful FLOPs of a train step, term by term against products written out by hand."""

import dataclasses

from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.titan import SelfModifierOptions, TitanOptions
from hope_jax.models.flops import train_flops_per_token
from hope_jax.models.spec import ModelSpec

D, H, V, T, N = 8, 32, 64, 16, 4
LEVELS = FrozenMapping({"a": Level(4, 0.1), "b": Level(8, 0.1)})
TITAN = TitanOptions(Level(8, 0.1), hidden_multiplier=H // D)
CMS = CmsOptions(LEVELS, hidden_multiplier=H // D)
HEAD, PROJECTIONS, LEVEL = 2 * D * V, 8 * D * D, 4 * D * H
SEEN = 4 * D * T / 2


def spec(variant: str, **values: object) -> ModelSpec:
    fields = {
        "style": "modern",
        "vocab_size": V,
        "dim": D,
        "num_layers": 1,
        "heads": 2,
        "mlp_multiplier": H // D,
        "cms": CMS,
        "chunk_size": N,
        "titan": TITAN,
    }
    return ModelSpec(block_variant=variant, **{**fields, **values})  # type: ignore[arg-type]


def test_transformer_is_three_times_its_forward_pass() -> None:
    forward = HEAD + PROJECTIONS + SEEN + LEVEL
    assert train_flops_per_token(spec("transformer"), T, "two_pass", T) == 3 * forward
    assert train_flops_per_token(spec("transformer"), T, "through_writes", N) == 3 * forward
    short = spec("transformer", sliding_window=4)
    assert train_flops_per_token(short, T, "two_pass", T) == 3 * (forward - SEEN + 4 * D * 4)


def test_keys_from_before_a_cut_have_no_cotangents() -> None:
    whole = train_flops_per_token(spec("transformer"), T, "online", T)
    cut = train_flops_per_token(spec("transformer"), T, "online", N)
    assert whole - cut == 4 * D * (T - N) / 2


def test_a_level_is_an_mlp_and_its_write_an_outer_product_a_matrix() -> None:
    plain = spec("transformer", mlp_multiplier=2 * H // D)
    base = train_flops_per_token(plain, T, "online", N)
    block = spec("hope_attention", cms=dataclasses.replace(CMS, delta_at="block_output"))
    assert train_flops_per_token(spec("hope_attention"), T, "online", N) == base + 2 * LEVEL
    assert train_flops_per_token(block, T, "online", N) == base + 2 * LEVEL + 2 * LEVEL / 2


def test_writes_after_the_only_read_count_where_they_stay() -> None:
    stays = MemoryOptions(scope="batch", lifetime="persistent")
    plain = train_flops_per_token(spec("transformer", mlp_multiplier=2 * H // D), T, "two_pass", N)
    assert train_flops_per_token(spec("hope_attention"), T, "two_pass", N) == plain
    assert train_flops_per_token(spec("hope_attention", memory=stays), T, "two_pass", N) == plain + 2 * LEVEL


def test_titan_reads_its_self_modifier_and_online_learns_it() -> None:
    first, rest = 2 * 3 * D * H, 2 * H * H + 2 * H * D
    read = 3 * (HEAD + PROJECTIONS + SEEN + LEVEL)
    write = LEVEL + LEVEL / 2 + first + rest
    assert train_flops_per_token(spec("titan"), T, "two_pass", T) == read
    learnt = LEVEL + LEVEL / 2 + first + 2 * rest
    assert train_flops_per_token(spec("titan"), T, "online", T) == read + write + learnt
    off = SelfModifierOptions(enabled=False)
    without = spec("titan", titan=dataclasses.replace(TITAN, self_modifier=off))
    assert train_flops_per_token(without, T, "online", T) == read + LEVEL
    late = spec("titan", titan=dataclasses.replace(TITAN, level=Level(T, 0.1)))
    assert train_flops_per_token(late, T, "online", T) == read + write


def test_through_writes_differentiates_read_signal_and_write() -> None:
    """One layer, two levels: the signal passes the head and all of level b, and of level a the way back to
    its hidden layer."""
    forward = HEAD + PROJECTIONS + SEEN + 2 * LEVEL
    signal = HEAD + LEVEL + LEVEL / 2
    write = 2 * LEVEL
    assert train_flops_per_token(spec("hope_attention"), T, "through_writes", N) == 3 * (
        forward + signal + write
    )


def test_self_mod_signal_has_its_own_backward_pass_between_cuts() -> None:
    """Two layers: of the last one's levels the outer gradient is the signal."""
    own, two = 72 * D * D, spec("hope_selfmod", num_layers=2)
    read = 3 * (HEAD + 2 * (own + 2 * LEVEL))
    assert train_flops_per_token(two, T, "two_pass", T) == read
    joint = read + 2 * 2 * LEVEL
    extra = own + LEVEL + LEVEL / 2
    assert train_flops_per_token(two, T, "online", T) == joint + extra
    assert train_flops_per_token(two, T, "online", T, per_layer=False) == joint
