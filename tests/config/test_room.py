"""What helps where a step does not fit: keys that the configuration can take, and does not have yet."""

from typing import Any

import pytest

from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.room import remedies
from hope_jax.config.values import resolve
from hope_jax.core.errors import lack_of_room

LEVELS = {"fast": {"update_period": 8, "lr": 0.1}, "slow": {"update_period": 64, "lr": 0.1}}


def make(**groups: dict[str, Any]) -> ExperimentConfig:
    train = {"online_chunk_size": 64, **groups.pop("train", {})}
    return resolve({"cms": {"levels": LEVELS}, "train": train, **groups})


def values(config: ExperimentConfig, devices: int = 2) -> dict[str, str]:
    """Key -> value, of what is named with one."""
    named = (text.split(" (")[0].partition("=")[::2] for text in remedies(config, devices)[:-1])
    return dict(named)


def test_first_what_changes_no_number() -> None:
    assert list(values(make()).items()) == [
        ("train.accumulate", "3"),
        ("train.remat", "layers"),
        ("train.fsdp", "True"),
        ("train.online_chunk_size", "32"),
        ("data.batch_size", "2"),
        ("optim.momentum_dtype", "bfloat16"),
    ]
    assert "train.fsdp" not in values(make(), devices=1)
    assert values(make(), devices=1)["train.accumulate"] == "2"


@pytest.mark.parametrize(
    ("groups", "unnamed"),
    [
        ({"train": {"accumulate": 3}, "data": {"batch_size": 6}}, "train.accumulate"),
        ({"train": {"remat": "layers"}}, "train.remat"),
        ({"train": {"fsdp": True}}, "train.fsdp"),
        ({"memory": {"scope": "batch"}}, "train.accumulate"),
        ({"teach": {"normalize": "batch_mean"}}, "train.accumulate"),
        ({"optim": {"momentum_dtype": "bfloat16"}}, "optim.momentum_dtype"),
        ({"data": {"batch_size": 2}}, "data.batch_size"),
        ({"train": {"online_chunk_size": 24}, "cms": {"levels": {}}}, "train.algorithm_mode"),
        ({"cms": {"levels": {"odd": {"update_period": 64, "lr": 0.1}}}, "train": {"online_chunk_size": 1}},
         "train.online_chunk_size"),
    ],
)  # fmt: skip
def test_what_is_used_already_or_cannot_be_is_not_named(groups: dict[str, Any], unnamed: str) -> None:
    assert unnamed not in values(make(**groups))


@pytest.mark.parametrize("mode", ["online", "two_pass", "through_writes"])
def test_what_is_named_can_run(mode: str) -> None:
    config = make(train={"algorithm_mode": mode})
    for key, value in values(config).items():
        group, name = key.split(".")
        own = {"algorithm_mode": mode} if group == "train" else {}
        validate(make(**{group: {**own, name: resolve_text(value)}}), device_count=2)
    assert ("train.algorithm_mode" in values(config)) == (mode != "online")


def resolve_text(value: str) -> Any:
    return {"True": True}.get(value, int(value) if value.isdigit() else value)


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory allocating 4398046511104 bytes.",
            "asks for 4,096.00 GiB at once",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35.21GiB.",
            "asks for 35.21 GiB at once",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 23.4G of 15.75G hbm. Exceeded hbm capacity by 7.7G.",
            "needs 23.4 GiB of 15.75 GiB",
        ),
        ("RESOURCE_EXHAUSTED: no words for it", "too little memory for this program"),
    ],
)
def test_devices_say_what_they_lack(text: str, figure: str) -> None:
    assert figure in lack_of_room(RuntimeError(text))
    assert not lack_of_room(RuntimeError(text.replace("RESOURCE", "OTHER")))
