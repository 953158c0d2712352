"""The schema: base configuration, resolving, overrides by path."""

import dataclasses
import typing
from collections.abc import Mapping

import pytest
from ml_collections import config_dict

from hope_jax.config.experiment import ExperimentConfig, base_config, level
from hope_jax.config.values import as_plain_dict, key_paths, resolve, said_of_levels, set_override
from hope_jax.core.errors import ConfigError
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import ACTIVATIONS
from hope_jax.models.spec import Architecture


def overridden(*overrides: tuple[str, str]) -> ExperimentConfig:
    values = as_plain_dict(base_config())
    for key, text in overrides:
        set_override(values, key, text)
    return resolve(values)


def test_base_config_resolves_to_the_defaults() -> None:
    assert resolve(base_config()) == ExperimentConfig()


def test_missing_keys_take_their_defaults() -> None:
    assert resolve({"cms": {"levels": {"a": {"update_period": 2, "lr": 1}}}}).cms.levels == {
        "a": Level(2, 1.0)
    }


def test_a_group_s_own_defaults_hold_for_keys_that_it_lacks() -> None:
    assert resolve({"titan": {"level": {"lr": 1.0}}}).titan.level.update_period == 8


def test_level_order_is_kept_from_plain_dicts_and_config_dicts() -> None:
    config = base_config()
    config.cms.levels = {"zeta": level(update_period=4, lr=0.1), "alpha": {"update_period": 8, "lr": 0.1}}
    assert list(resolve(config).cms.levels) == ["zeta", "alpha"]
    config.cms.levels.beta = level(update_period=16, lr=0.1)
    assert list(resolve(config).cms.levels) == ["zeta", "alpha", "beta"]


def test_field_references_are_resolved() -> None:
    config = base_config()
    config.optim.warmup_steps = config.get_ref("train").get().get_ref("steps") // 10
    config.train.steps = 500
    assert resolve(config).optim.warmup_steps == 50


def test_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve(base_config()).model.dim = 1  # type: ignore[misc]


def test_whole_numbers_become_floats_and_nothing_else_is_converted() -> None:
    config = resolve({"teach": {"scale": 1}})
    assert isinstance(config.teach.scale, float)
    for bad in ({"dim": 64.0}, {"dim": True}, {"dim": "64"}, {"dim": None}, {"heads": 1.5}):
        with pytest.raises(ConfigError, match="want"):
            resolve({"model": bad})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"dimm": 3}}, "model.dimm: unknown key; did you mean model.dim?"),
        ({"model": {"batch_size": 3}}, "did you mean data.batch_size?"),
        ({"modl": {}}, "modl: unknown key; did you mean model?"),
        ({"model": 3}, "model: want a group of keys, got 3"),
        ({"model": {"style": "moderne"}}, "got 'moderne'; did you mean modern?"),
        (
            {"cms": {"levels": {"a": {"update_period": 0, "lr": 1}}}},
            "a.update_period: want .* at least 1; got 0",
        ),
        (
            {"cms": {"levels": {"a": {"period": 4}}}},
            "did you mean cms.levels.a.update_period?",
        ),
        ({"cms": {"levels": {"a-b": {}}}}, "'a-b' is no name"),
        (
            {"cms": {"levels": {"a": {"update_period": 4}}}},
            "a.lr: missing; every level names its lr",
        ),
        ({"model": {"teach_scale": 1}}, "model.teach_scale: unknown key; did you mean teach.scale?"),
        ({"model": {"cms_levels": {}}}, "did you mean cms.levels?"),
        ({"model": {"titan_level": {}}}, "did you mean titan.level?"),
        ({"cms": {"levels": [1]}}, "want a group of keys"),
        ({"memory": {"surprise_threshold": -0.1}}, "at least 0, or None; got -0.1"),
        ({"model": {"vocab_size": 1}}, "at least 2; got 1"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: .* got nan"),
        ({"optim": {"lr": float("inf")}}, "optim.lr: .* got inf"),
        ({"optim": {"b1": 1.0}}, "at least 0 and below 1; got 1.0"),
        ({"optim": {"eps": 0}}, "above 0; got 0"),
        ({"train": {"steps": 0}}, "train.steps: .* at least 1; got 0"),
        ({"data": {"batch_size": -2}}, "data.batch_size"),
        ({"data": {"mixture": {"wikipedia": "much"}}}, "data.mixture.wikipedia"),
    ],
)
def test_refused_by_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(values)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"model": {"dim": 0, "heads": "x"}, "train": {"stepps": 1}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert [line.split(":")[0] for line in lines[1:]] == ["- model.dim", "- model.heads", "- train.stepps"]


def test_every_key_has_an_override() -> None:
    """Each key, set to the text of its default, gives the default configuration again."""
    checked = 0
    for path, _, _ in key_paths():
        path = path.replace(".NAME.", ".cms_fast.")
        value: object = ExperimentConfig()
        for name in path.split("."):
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        if isinstance(value, Mapping):
            continue
        assert overridden((path, str(value))) == ExperimentConfig(), path
        checked += 1
    assert checked > 80


def test_overrides_by_type() -> None:
    config = overridden(
        ("memory.surprise_threshold", "0.05"),
        ("optim.adam_lr", "none"),
        ("log.tensorboard", "False"),
        ("cms.levels.cms_fast.update_period", "64"),
        ("cms.levels.+cms_ultra", "{'update_period': 256, 'lr': 1e-3}"),
        ("data.mixture.+wikipedia", "0.5"),
        ("data.source", "True"),
        ("optim.lr", "1e-3"),
    )
    assert config.memory.surprise_threshold == 0.05
    assert config.optim.adam_lr is None
    assert not config.log.tensorboard
    assert config.cms.levels == {
        "cms_fast": Level(64, 1e-3),
        "cms_ultra": Level(256, 1e-3),
    }
    assert config.data.mixture == {"wikipedia": 0.5}
    assert config.data.source == "True"
    assert config.optim.lr == 1e-3
    later = overridden(("memory.surprise_threshold", "0.05"), ("memory.surprise_threshold", "None"))
    assert later.memory.surprise_threshold is None


def test_override_of_all_levels_replaces_them() -> None:
    config = overridden(
        ("cms.levels", "{'b': {'update_period': 8, 'lr': 1}, 'a': {'update_period': 4, 'lr': 1}}")
    )
    assert [(n, v.update_period) for n, v in config.cms.levels.items()] == [("b", 8), ("a", 4)]
    assert overridden(("cms.levels", "{}")).cms.levels == {}


def test_activations_of_the_schema_are_those_of_the_table() -> None:
    assert typing.get_args(typing.get_type_hints(Architecture)["activation"]) == tuple(ACTIVATIONS)


def test_text_for_a_group_changes_the_keys_that_it_names() -> None:
    """A level that is there keeps its other keys, and so does any group."""
    setting = ("cms.levels.cms_fast", "{'update_period': 4, 'lr': 0.5}")
    config = overridden(setting, ("cms.levels.cms_fast", "{'lr': 0.1}"), ("model", "{'heads': 4}"))
    assert config.cms.levels == {"cms_fast": Level(update_period=4, lr=0.1)}
    assert (config.model.heads, config.model.dim) == (4, ExperimentConfig().model.dim)
    titan = overridden(("titan.level.optimizer", "sgd"), ("titan.level", "{'lr': 0.1}"))
    assert titan.titan.level == Level(update_period=8, optimizer="sgd", lr=0.1)


def test_names_are_dropped_explicitly() -> None:
    config = overridden(
        ("cms.levels.+slow", "{'update_period': 32, 'lr': 1e-3}"),
        ("cms.levels.cms_fast", "None"),
        ("data.mixture.+a", "1"),
        ("data.mixture.a", "none"),
    )
    assert config.cms.levels == {"slow": Level(32, 1e-3)}
    assert config.data.mixture == {}
    assert overridden(("cms.levels", "{}")).cms.levels == {}


def test_options_of_a_task_need_no_plus() -> None:
    assert overridden(("data.task_options.length", "8")).data.task_options == {"length": 8}


def test_what_a_level_does_not_name_is_said() -> None:
    before, after = as_plain_dict(base_config()), as_plain_dict(base_config())
    assert list(said_of_levels(before, after)) == []
    set_override(after, "cms.levels", "{'a': {'update_period': 8, 'lr': 0.1}}")
    assert list(said_of_levels(before, after)) == [
        "cms.levels: dropped cms_fast",
        "cms.levels: added a",
        "cms.levels.a: not named, so by default optimizer=momentum, beta=0.9, beta2=0.999, eps=1e-08",
    ]


def test_update_in_a_config_file_changes_levels_that_are_there() -> None:
    config = base_config()
    config.cms.update({"levels": {"cms_fast": {"update_period": 4}}})
    assert resolve(config).cms.levels == {"cms_fast": Level(4, 1e-3)}
    for mistyped in ({"levels": {"cms_fst": {"lr": 0.1}}}, {"level": {"cms_fast": {"lr": 0.1}}}):
        with pytest.raises(ConfigError, match="did you mean (cms_fast|levels)?"):
            config.cms.update(mistyped)
    config.cms.levels.update(cms_slow=level(update_period=32, lr=0.1))
    assert list(resolve(config).cms.levels) == ["cms_fast", "cms_slow"]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.dim", "abc", "model.dim: want a whole number, at least 1; got 'abc'"),
        ("train.steps", "1e3", "train.steps: want a whole number"),
        ("train.profile", "maybe", "train.profile: want true or false"),
        ("model.dimm", "1", "did you mean model.dim?"),
        ("cms.levels.a.perod", "1", "known here: update_period"),
        ("cms.levels.cms_fst.lr", "1", "there are cms_fast; did you mean cms_fast? (to add "),
        ("cms.levels.cms_fst", "{'lr': 1}", "--config.cms.levels.+cms_fst=VALUE"),
        ("cms.levels.cms_fst", "None", "did you mean cms_fast?"),
        ("cms.levels.+cms_fast.lr", "1", "cms_fast is there already; leave out the +"),
        ("cms.levels.+b", "None", "cms.levels.b: want a group of keys, got None"),
        ("cms.levels.cms-fast.lr", "1", "'cms-fast' is no name"),
        ("cms.levels.cms_fast", "{'lrr': 1}", "did you mean cms.levels.cms_fast.lr?"),
        ("titan.level", "{'lrr': 1}", "did you mean titan.level.lr?"),
        ("model.+dim", "1", "did you mean model.dim?"),
        ("data.mixture.code", "0.5", "there are none (to add code: --config.data.mixture.+code=VALUE)"),
        ("model.dim.x", "1", "model.dim has no keys of its own"),
        ("cms.levels", "{a", "want a group of keys"),
        ("model", "3", "model: want a group of keys, got 3"),
    ],
)
def test_refused_overrides(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden((key, text))
    assert message in str(caught.value)


def test_plain_dict_holds_no_config_dict() -> None:
    plain = as_plain_dict(base_config())
    assert type(plain["cms"]["levels"]["cms_fast"]) is dict
    assert isinstance(base_config(), config_dict.ConfigDict)
