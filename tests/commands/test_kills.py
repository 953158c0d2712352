"""A run that is killed at any moment and started again writes, bit for bit, what an undisturbed one does."""

import random
from pathlib import Path

import pytest

from hope_jax.models.blocks import BLOCKS
from tests.commands.kills import MOMENTS, finish, kill, starting

PERSISTENT = ("memory.scope=batch", "memory.lifetime=persistent")
EVERY_PUSH = {
    ("checkpoint", "hope_attention", "online"),
}
MODES = ("online", "two_pass", "through_writes")


def cases() -> list[object]:
    """30 kills: every variant and mode, every kind of moment; one on every push."""
    combinations = [(variant, mode) for variant in BLOCKS for mode in MODES]
    moments = list(MOMENTS)
    chosen = [(moments[i % 3], *each) for i, each in enumerate(combinations)]
    chosen += [(moments[(i + 1) % 3], *combinations[i]) for i in range(9)]
    chosen = [case for case in chosen if case not in EVERY_PUSH]
    chosen = [*sorted(EVERY_PUSH), *chosen][:30]
    return [pytest.param(*c, marks=() if c in EVERY_PUSH else pytest.mark.nightly) for c in chosen]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs of this module's runs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize(("moment", "variant", "mode"), cases())
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    moment: str, variant: str, mode: str, cache: Path, tmp_path: Path
) -> None:
    overrides = [f"model.block_variant={variant}", f"train.algorithm_mode={mode}"]
    if mode == "two_pass" and variant.startswith("hope"):
        overrides += PERSISTENT
    straight = finish(tmp_path / "straight", cache, overrides)
    assert [row["step"] for row in straight.rows] == list(range(1, 13))
    dice = random.Random(f"{moment} {variant} {mode}")
    broken = tmp_path / "broken"
    hit = kill(broken, cache, overrides, MOMENTS[moment](dice), dice.uniform(0.0, 0.05))
    assert hit, "the run ended before the moment came"
    assert moment != "data" or any((broken / "checkpoints").glob("*.sha256"))
    kill(broken, cache, overrides, starting(dice), 0.0)
    again = finish(broken, cache, overrides)
    assert again.rows == straight.rows
    assert again.digest == straight.digest
