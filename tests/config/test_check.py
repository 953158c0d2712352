"""Combinations that cannot run are refused; N and K; warnings."""

from typing import Any, get_args

import pytest

from hope_jax.config.check import RESERVED_LEVELS, validate, warnings
from hope_jax.config.chunks import document_multiple, online_chunk, stream_chunk, truncate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import resolve
from hope_jax.core.errors import ConfigError
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import BlockVariant
from tests.specs import small_spec

LEVELS = {"cms_fast": {"update_period": 4}, "cms_slow": {"update_period": 32}}
TWO_PASS = {"train": {"algorithm_mode": "two_pass"}}
NESTED = {"cms": {"connection": "nested"}}
RESET = {"reset_at_document": True}


def make(
    model: dict[str, Any] | None = None, levels: dict[str, Any] = LEVELS, **groups: dict[str, Any]
) -> ExperimentConfig:
    """levels: what they name besides a period of 16 and a rate."""
    named = {name: {"update_period": 16, "lr": 0.1, **level} for name, level in levels.items()}
    cms = {"levels": named, **groups.pop("cms", {})}
    return resolve({"model": model or {}, "cms": cms, **groups})


def periods(*periods: int) -> ExperimentConfig:
    return make(levels={f"c{c}": {"update_period": c} for c in periods}, **NESTED)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (make({"dim": 100, "heads": 8}), "model.heads=8 does not divide model.dim=100"),
        (make({"dim": 24, "heads": 8}), "is 3: RoPE"),
        (make({"block_variant": "transformer_pp", "activation": "relu"}), "activation=relu has no place in"),
        (
            make(levels={}, train={"param_policy": "backbone_frozen"}),
            "block_variant=hope_attention with no cms.levels has no memories",
        ),
        (make(levels={"a": {"update_period": 24}}, train={"online_chunk_size": 16}), "24 neither"),
        (
            make(levels={"a": {"update_period": 24}}, data={"seq_len": 256}, **TWO_PASS),
            "data.seq_len",
        ),
        (
            make({"block_variant": "titan"}, titan={"level": {"update_period": 5}}),
            "titan.level.update_period=5",
        ),
        (
            make({"block_variant": "hope_selfmod"}, self_modifying_titans={"chunk_size": 3}),
            "chunk_size=3 neither",
        ),
        (
            make(train={"online_chunk_size": 64}, data={"seq_len": 32}),
            "64 tokens .* larger than data.seq_len=32",
        ),
        (make(data={"seq_len": 8}), "the online chunk of 16 tokens"),
        (make(train={"online_chunk_size": 16, "truncate_tokens": 24}), "truncate_tokens=24: no multiple"),
        (
            make({"block_variant": "hope_selfmod"}, train={"truncate_tokens": 64}),
            "truncate_tokens=64 is below 128",
        ),
        (make(memory={"lifetime": "persistent", "scope": "batch"}), "needs train.algorithm_mode=two_pass"),
        (make(memory={"lifetime": "persistent"}, **TWO_PASS), "needs memory.scope=batch"),
        (make(train={"steps": 10, "step_offset": 10}), "train.steps=10"),
        (make(train={"steps": 10}, optim={"warmup_steps": 11}), "optim.warmup_steps=11"),
        (
            make(train={"steps": 10}, optim={"warmup_steps": 6, "cooldown_steps": 6, "schedule": "constant"}),
            "optim.cooldown_steps=6",
        ),
        (make(optim={"cooldown_steps": 5}), "optim.schedule=cosine"),
        (
            make(levels={"a": {"update_period": 16}, "b": {"update_period": 16}}, **NESTED),
            "cms.levels.a.update_period=16 is no larger multiple of cms.levels.b.update_period=16",
        ),
        (
            periods(16, 48, 32),
            "cms.levels.c48.update_period=48 is no larger multiple of cms.levels.c32.update_period=32",
        ),
        (
            make(levels={"mix": {"update_period": 16}}, cms={"connection": "independent"}),
            "cms.levels.mix: ",
        ),
        (
            make(data={"source": "shards", "mixture": {"a": 0.5}}),
            "data.mixture: the weights a=0.5 sum to 0.5",
        ),
        (
            make(memory={"scope": "batch", **RESET}),
            "memory.reset_at_document=True needs memory.scope=example, not batch",
        ),
        (
            make(memory={"scope": "batch", "lifetime": "persistent", **RESET}, **TWO_PASS),
            "memory.reset_at_document=True needs memory.lifetime=context, not persistent",
        ),
        (
            make(memory=RESET, data={"seq_len": 100}),
            r"data.seq_len=100 is no multiple of the online chunk \(16 tokens\), .* use 96, or",
        ),
        (
            make(memory={"scope": "batch"}, train={"accumulate": 2}),
            "train.accumulate=2 needs memory.scope=example, not batch: .* train.remat=layers",
        ),
        (
            make(teach={"normalize": "batch_mean"}, train={"accumulate": 2}),
            "train.accumulate=2 needs teach.normalize=token, not batch_mean",
        ),
        (
            make(data={"batch_size": 8}, train={"accumulate": 6}),
            "train.accumulate=6 does not divide data.batch_size=8; use train.accumulate=2",
        ),
    ],
)
def test_refused_combinations(config: ExperimentConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_every_problem_is_named_at_once() -> None:
    config = make({"block_variant": "titan"}, titan={"level": {"optimizer": "adam"}}, data={"batch_size": 6})
    with pytest.raises(ConfigError) as caught:
        validate(config, device_count=4)
    text = str(caught.value)
    assert "titan.level.optimizer='adam': unknown; known: sgd" in text
    assert "data.batch_size=6 is not divisible by the 4 devices" in text
    assert len(text.splitlines()) == 3


def test_the_rows_of_each_device_are_read_in_parts() -> None:
    config = make(data={"batch_size": 8}, train={"accumulate": 4})
    validate(config, device_count=2)
    with pytest.raises(ConfigError, match="2 rows on each of 4 devices; use train.accumulate=2") as caught:
        validate(config, device_count=4)
    assert len(str(caught.value).splitlines()) == 1


def test_optimizers_of_memories_that_the_variant_lacks_do_not_matter() -> None:
    validate(make(titan={"level": {"optimizer": "adam", "update_period": 7}}))


def test_variants_are_the_keys_of_the_block_table() -> None:
    assert get_args(BlockVariant) == tuple(BLOCKS)


def test_a_memory_without_periods_is_a_memory() -> None:
    validate(make({"block_variant": "gated_deltanet"}, train={"param_policy": "backbone_frozen"}))


def test_accepted_where_the_rule_does_not_apply() -> None:
    validate(make({"dim": 24, "heads": 8, "style": "reference"}))
    for variant in ("transformer", "hope_attention", "hope_hybrid", "hope_selfmod"):
        validate(make({"block_variant": variant, "activation": "relu"}, {}))
    for connection in ("independent", "nested"):
        validate(make(levels={}, cms={"connection": connection, "norm": "none"}))
        validate(make(levels={"a": {}}, cms={"connection": connection}))
    validate(make(memory={"lifetime": "persistent", "scope": "batch"}, **TWO_PASS))
    validate(make(levels={"a": {"update_period": 64}}, train={"online_chunk_size": 16}))
    validate(make(**NESTED))
    validate(make(memory=RESET, data={"seq_len": 96}))
    validate(make(memory={"scope": "batch"}, data={"seq_len": 100}))
    validate(make({"block_variant": "transformer"}, levels={"mix": {}, "b": {}}, **NESTED))


@pytest.mark.parametrize(
    ("config", "chunk", "cut"),
    [
        (make(), 16, 16),
        (make(levels={"a": {"update_period": 64}, "b": {"update_period": 128}}), 64, 64),
        (make(train={"online_chunk_size": 32, "truncate_tokens": 96}), 32, 96),
        (
            make(data={"seq_len": 512}, train={"algorithm_mode": "two_pass", "online_chunk_size": 32}),
            512,
            512,
        ),
        (make({"block_variant": "transformer"}, data={"seq_len": 512}), 512, 512),
        (make(levels={}, data={"seq_len": 512}), 512, 512),
        (make(levels={}, train={"online_chunk_size": 32}), 32, 32),
        (make({"block_variant": "titan"}, levels={"a": {"update_period": 64}}), 16, 16),
        (
            make({"block_variant": "hope_hybrid"}, levels={}, titan={"level": {"update_period": 24}}),
            24,
            24,
        ),
        (make({"block_variant": "hope_selfmod"}, levels={}), 16, 256),
        (make({"block_variant": "hope_selfmod"}), 16, 256),
        (make({"block_variant": "hope_selfmod"}, train={"online_chunk_size": 96}), 96, 288),
        (make({"block_variant": "hope_selfmod"}, self_modifying_titans={"chunk_size_memory": 256}), 16, 512),
    ],
)
def test_chunk_and_cut(config: ExperimentConfig, chunk: int, cut: int) -> None:
    assert (online_chunk(config), truncate(config)) == (chunk, cut)


@pytest.mark.parametrize(
    ("config", "multiple"),
    [
        (make(), 1),
        (make(memory=RESET), 16),
        (make(memory=RESET, train={"online_chunk_size": 32}), 32),
        (make(memory=RESET, data={"seq_len": 512}, **TWO_PASS), 512),
    ],
)
def test_documents_are_padded_to_whole_chunks(config: ExperimentConfig, multiple: int) -> None:
    assert document_multiple(config) == multiple
    assert any("no row holds two documents" in line for line in warnings(config)) == (multiple == 512)


def test_names_of_other_memories_are_not_for_levels() -> None:
    """A level of their name would be reported with theirs."""
    for variant in BLOCKS:
        model = HopeModel(small_spec(variant, 4, {}))
        others = [names for memory, names in model.level_names().items() if memory != "cms"]
        assert {name for names in others for name in names} <= set(RESERVED_LEVELS)


SHORT = {"seq_len": 512}
PERSISTENT = {"lifetime": "persistent", "scope": "batch"}


@pytest.mark.parametrize(
    ("config", "chunk"),
    [
        (make(train={"online_chunk_size": 32}), 32),
        (make({"block_variant": "transformer"}, data=SHORT), 16),
        (make({"block_variant": "transformer"}, data={"seq_len": 8}, **TWO_PASS), 8),
        (make(levels={}, data=SHORT), 16),
        (make(data=SHORT, **TWO_PASS), 16),
        (make(data=SHORT, train={"algorithm_mode": "two_pass", "online_chunk_size": 32}), 32),
        (make(data=SHORT, memory=PERSISTENT, **TWO_PASS), 512),
        (make({"block_variant": "hope_selfmod"}, data=SHORT, **TWO_PASS), 16),
        (make(levels={"a": {"update_period": 3}}, data={"seq_len": 192}, **TWO_PASS), 192),
    ],
)
def test_chunk_of_streams(config: ExperimentConfig, chunk: int) -> None:
    assert stream_chunk(config) == chunk


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (make(), "cms.levels.cms_fast (4)"),
        (make(**TWO_PASS), "nothing but statistics"),
        (make(teach={"source": "global"}), "cms.delta_at=own_output has no effect"),
        (make(data={"mixture": {"a": 1.0}}), "data.mixture has no effect"),
        (
            make({"block_variant": "hope_selfmod"}, data={"seq_len": 32}),
            "chunk_size_memory (64): longer than",
        ),
        (
            make(train={"algorithm_mode": "through_writes", "truncate_tokens": 32}),
            "train.truncate_tokens has no effect under through_writes",
        ),
        (make(levels={"a": {"update_period": 4096}}), "cms.levels.a (4096): the period is longer"),
        (make(levels={}, train={"online_chunk_size": 32}), "which hope_attention does not need"),
        (periods(4, 8, 32), "c4 (4) restarts every 8 tokens under cms.connection=nested, within the online"),
        (periods(4, 8, 32), "of 16: only its learned start"),
        (periods(4, 8, 16), "of 16: only its start that training gave it"),
    ],
)
def test_warnings_name_what_may_not_be_meant(config: ExperimentConfig, message: str) -> None:
    assert any(message in line for line in warnings(config))


def test_no_warning_without_reason() -> None:
    assert not warnings(make(train={"online_chunk_size": 4}))
    assert not warnings(make({"block_variant": "transformer"}, **TWO_PASS))
    assert not warnings(make({"block_variant": "hope_selfmod"}, levels={}))
