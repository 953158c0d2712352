"""What a plan says of a step that does not fit."""

import pytest

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.planning import compile, devices, estimate, table


@pytest.mark.parametrize("needed", [None, 60.0 * devices.GIB])
def test_keys_that_help_stand_below_a_step_that_does_not_fit(
    needed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise compile.DoesNotFit(needed)

    monkeypatch.setattr(compile, "train_step", refuse)
    topology = devices.parse_topology("rtx6000ada:2")
    plan = estimate.make_plan(ExperimentConfig(), topology, [], train=True, largest=False, contexts=[])
    text = "\n".join(table.lines({"config": "made/up.py", **plan}))
    assert "does not fit" in text and text.count("what helps") == 1
    assert all(key in text for key in ("train.accumulate=3", "train.remat=layers", "train.fsdp=True"))
