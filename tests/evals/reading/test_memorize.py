"""Memorization: what is written, where, by which texts."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from hope_jax.core import trees
from hope_jax.core.errors import ConfigError
from hope_jax.evals.reading.memorize import Memorizer, Rule, fitting, paths_of, unrelated
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.learning.stream import Streamer
from hope_jax.models.lm import HopeModel
from tests.evals.reading.test_scoring import text
from tests.evals.subjects import subject


def written(variant: str, **rule) -> dict[str, np.ndarray]:
    """Largest change of each memory's and level's weights, by layer."""
    model = subject(variant)
    streamer, params = model.trained.streamer, model.trained.params
    before = trees.stack(streamer.model.init_fast_state(params, 1))
    after = trees.stack(Memorizer(model, Rule(**rule))([text(70)]).fast)
    found = {}
    for name, levels in streamer.model.level_names().items():
        parts = {name: (before[name], after[name])}
        if isinstance(before[name], dict):
            parts = {level: (before[name][level].delta, after[name][level].delta) for level in levels}
        for part, (old, new) in parts.items():
            moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)), old, new)
            found[part] = np.max([leaf.reshape(2, -1).max(1) for leaf in jax.tree.leaves(moved)], 0)
    return found


@pytest.mark.parametrize(
    "variant", ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]
)
def test_texts_of_a_batch_write_what_each_writes_alone(variant):
    memorize = Memorizer(subject(variant), Rule(steps=2))
    texts = [text(70, 1), text(3, 2)]
    together = memorize(texts)
    for i, row in enumerate(texts):
        alone = memorize([row])
        for a, b in zip(jax.tree.leaves(alone.fast), jax.tree.leaves(together.fast), strict=True):
            np.testing.assert_allclose(a[0], b[i], rtol=2e-4, atol=2e-6)
        for level, counts in alone.stats.items():
            np.testing.assert_allclose(
                counts["updates_applied"][0], together.stats[level]["updates_applied"][i]
            )


@pytest.mark.nightly
def test_what_was_memorized_is_known_better():
    model = subject()
    own, other = text(60, 1), text(60, 2)
    fast = Memorizer(model, Rule(steps=8))([own]).fast
    gain = token_log_probs(model, [own], fast)[0].mean() - token_log_probs(model, [own])[0].mean()
    elsewhere = token_log_probs(model, [other], fast)[0].mean() - token_log_probs(model, [other])[0].mean()
    assert gain > 0.01 and gain > 5 * elsewhere


def test_steps_add_up():
    once, twice = (written("hope_attention", steps=n)["fast"].max() for n in (1, 2))
    assert twice > 1.2 * once > 0


@pytest.mark.parametrize(
    ("variant", "paths"),
    [
        ("hope_hybrid", ("titan", "fast")),
        pytest.param("hope_attention", ("slow",), marks=pytest.mark.nightly),
        pytest.param("hope_selfmod", ("self_mod",), marks=pytest.mark.nightly),
    ],
)
def test_only_the_paths_that_are_named_are_written(variant, paths):
    for name, moved in written(variant, paths=paths).items():
        assert (moved.max() > 0) == (name in paths), name


@pytest.mark.nightly
def test_a_memory_names_all_its_levels():
    moved = written("hope_hybrid", paths=("cms",))
    assert moved["fast"].max() > 0 and moved["slow"].max() > 0 and not moved["titan"].max()


@pytest.mark.parametrize(
    "variant", ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]
)
def test_only_the_layers_that_are_named_are_written(variant):
    for moved in written(variant, layers=(1,)).values():
        assert moved[0] == 0 and moved[1] > 0


def test_counts_are_of_what_is_written():
    stats = Memorizer(subject("hope_hybrid"), Rule(paths=("slow",)))([text(70)]).stats
    assert stats["cms/slow"]["updates_applied"][0] == 2 * 3  # layers x periods of 32 in 71 tokens
    assert not stats["cms/fast"]["updates_applied"][0] and not stats["titan/titan"]["updates_applied"][0]


@pytest.mark.nightly
def test_the_gate_closes_at_a_threshold():
    stats = Memorizer(subject(), Rule(surprise_threshold=1e9))([text(70)]).stats
    assert all(counts["updates_applied"][0] == 0 for counts in stats.values())


def test_unknown_paths_and_layers_are_refused_with_those_there_are():
    assert paths_of(subject("hope_selfmod").trained.streamer.model) == ("self_mod", "cms", "fast", "slow")
    with pytest.raises(ConfigError, match=r"no memory 'titan'; its own: cms, fast, slow"):
        Memorizer(subject(), Rule(paths=("titan",)))
    with pytest.raises(ConfigError, match=r"no memory 'slwo'; its own: .*; did you mean slow\?"):
        Memorizer(subject(), Rule(paths=("slwo",)))
    with pytest.raises(ConfigError, match="2 is no layer; the model has 0 to 1"):
        Memorizer(subject(), Rule(layers=(2,)))
    with pytest.raises(ConfigError, match="at least 1"):
        Memorizer(subject(), Rule(steps=0))


def test_a_rule_is_cut_to_what_a_model_has():
    def model(variant: str) -> HopeModel:
        return subject(variant).trained.streamer.model

    rule = Rule(paths=("titan", "fast"), layers=(1, 7))
    assert fitting(model("hope_attention"), rule) == rule._replace(paths=("fast",), layers=(1,))
    assert fitting(model("hope_attention"), Rule(paths=("titan",))) is None
    assert fitting(model("transformer"), Rule()) is None, "no memories at all"


def test_unrelated_texts_are_of_the_length_asked_for_and_differ_by_seed():
    a, b = (unrelated(subject(), 50, seed) for seed in (0, 1))
    assert len(a) == len(b) == 50 and (a != b).any()
    np.testing.assert_array_equal(a, unrelated(subject(), 50, 0))
    assert len(unrelated(subject(), 10**6, 0)) == 10**6


def test_padding_forgets_nothing_where_documents_reset_memories():
    model = subject()
    base = model.trained.streamer
    spec = base.model.spec
    spec = replace(spec, memory=replace(spec.memory, reset_at_document=True))
    resets = model._replace(trained=model.trained._replace(streamer=Streamer(HopeModel(spec), base.rule)))
    texts = [text(70, 1), text(20, 2)]
    got, want = (trees.stack(Memorizer(one, Rule())(texts).fast) for one in (resets, model))
    got, want = (fast["cms"]["fast"].delta for fast in (got, want))
    assert all(np.abs(a[:, 1]).max() > 0 for a in jax.tree.leaves(got))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-7)
