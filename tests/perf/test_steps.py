"""Benchmarks of whole things at a tiny size: a step that keeps its state, the loader, compilation."""

from pathlib import Path

import jax
import numpy as np
import pytest

from hope_jax.config import assemble
from hope_jax.config.check import validate
from hope_jax.config.chunks import online_chunk, truncate
from hope_jax.config.presets import pilot_config
from hope_jax.perf import loader, steps
from hope_jax.perf.steps import StepRun, step_case
from hope_jax.planning.counts import count
from tests.perf import tiny


def test_a_step_goes_on_from_the_state_that_the_last_one_left() -> None:
    config = tiny.config("transformer", optim__lr=0.1)
    case = step_case("tiny", config)
    first, second = jax.device_get([case.run()[1]["loss"] for _ in range(2)])
    assert second < first
    (state, _), _ = case.run(), case.run()
    assert jax.tree.leaves(state.params)[0].is_deleted(), "the state is donated"
    assert case.tokens == 64 and case.flops == 64 * assemble.flops_per_token(config)


@pytest.mark.parametrize("name", [steps.BASE, *steps.STEPS])
def test_every_step_is_a_valid_configuration(name: str) -> None:
    config = steps.pilot_step(name)
    validate(config)
    tokens = 512 if name == "through_writes" else 2048
    assert (config.data.seq_len, config.model.dim, config.model.num_layers) == (tokens, 512, 4)
    named = name.partition("-")[2]
    assert online_chunk(config) == {"hope_selfmod": 512, "through_writes": 32}.get(name, int(named or tokens))
    assert truncate(config) == online_chunk(config)
    assert config.titan.level.optimizer == "nl_l2_precond"
    assert config.model.style == ("reference" if name == "pilot_reference" else pilot_config().model.style)


def test_products_of_a_compiled_transformer_step_are_the_useful_ones() -> None:
    """But for the scores above the diagonal, which a mask takes away afterwards."""
    config = tiny.config("transformer", train__algorithm_mode="two_pass")
    program = StepRun(config).executable.as_text()
    tokens, model = config.data.batch_size * config.data.seq_len, config.model
    masked = 12 * model.dim * (config.data.seq_len / 2) * model.num_layers
    assert count(program).total_flops == tokens * (assemble.flops_per_token(config) + masked)


def test_the_loader_delivers_batches_on_the_device() -> None:
    config = tiny.config()
    case = loader.loader_case(config)
    batches = case.run()
    assert len(batches) == loader.BATCHES and case.tokens == loader.BATCHES * 64
    assert batches[0].tokens.shape == (2, 32) and isinstance(batches[0].tokens, jax.Array)
    assert not np.array_equal(batches[0].tokens, case.run()[0].tokens)


def test_a_step_fed_from_a_mixture_says_how_long_it_waited(tmp_path: Path) -> None:
    mixture = {"a": 0.5, "b": 0.5}
    loader.made_up_shards(tmp_path, mixture, row_tokens=32)
    shards = {"data__source": str(tmp_path), "data__mixture": mixture, "train__algorithm_mode": "two_pass"}
    case = loader.fed_case(tiny.config("transformer", model__vocab_size=1024, **shards))
    assert case.waited is not None and case.waited() == 0
    state, metrics = case.run()
    waited = case.waited()
    assert np.isfinite(metrics["loss"]) and waited > 0
    assert case.run()[1]["loss"] != metrics["loss"] and case.waited() > waited


def test_compilation_starts_afresh_each_time() -> None:
    config = tiny.config("transformer", train__algorithm_mode="two_pass", model__num_layers=1)
    before = jax.config.jax_compilation_cache_dir
    cases = steps.cached_and_cold(config)
    for case in cases:
        lower, xla = case.run()
        assert case.single and lower > 0 and xla > 0
    assert [case.name for case in cases] == ["cold", "cached"]
    assert jax.config.jax_compilation_cache_dir == before
