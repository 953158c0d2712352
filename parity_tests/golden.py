"""Replays a folder of golden files and says of each how our code compares with it.

python -m parity_tests.golden DIR

A line a file: `match`; `deliberate difference`, with its reasons from the table behind docs/differences.md;
or `mismatch`. Errors are the largest over all compared entries, relative ones to an entry's largest recorded
magnitude. Exit code 0; 1 if there is a mismatch; 2 if DIR holds no golden files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from hope_jax import cli
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import complain, say
from hope_jax.core.paths import as_path, files_in
from parity_tests import (
    replay_attention,
    replay_cms,
    replay_model,
    replay_optim,
    replay_smt,
    replay_streams,
    replay_teach,
    replay_titan,
    replay_train_step,
)
from parity_tests.difference_table import BY_NAME
from parity_tests.golden_file import Golden, GoldenMismatch, load_golden

MATCH, DIFFERENCE, MISMATCH = "match", "deliberate difference", "mismatch"

Replay = Callable[[Golden], None]


def replay_any_model(g: Golden) -> None:
    """A model's reads, or its calls with writes of its TITAN memories."""
    (replay_titan.replay_model if "plain_logits" in g.outputs else replay_model.replay)(g)


REPLAYS: tuple[tuple[str, Replay], ...] = (
    ("teach", replay_teach.replay),
    ("cms_forward", replay_cms.replay_forward),
    ("cms_update", replay_cms.replay_update),
    ("titan_memory", replay_titan.replay_memory),
    ("smt", replay_smt.replay),
    ("attention", replay_attention.replay),
    ("model", replay_any_model),
    ("optim", replay_optim.replay),
    ("train_step", replay_train_step.replay),
    ("level_clock", replay_streams.replay_clock),
    ("attnblock", replay_streams.replay_block),
    ("hybrid", replay_streams.replay_block),
    ("selfmod_block", replay_streams.replay_block),
    ("memorize", replay_streams.replay_memorize),
    ("train", replay_streams.replay_training),
)
"""By the beginning of a file's name; the first that fits."""


class Report(NamedTuple):
    """What a file's replay found. verdict: the worst of its entries. reasons: of the verdict."""

    name: str
    verdict: str
    golden: Golden | None
    reasons: list[str]

    def line(self) -> str:
        """As it is printed."""
        parts = []
        if self.golden is not None:
            g = self.golden
            in_part = f" and {g.parts} in part" if g.parts else ""
            rounded = "" if g.rounded is None else f" ({g.rounded:.1e} where recorded in lower precision)"
            parts.append(
                f"{g.compared} of {len(g.outputs)} entries compared{in_part}, largest error "
                f"{g.absolute:.1e} absolute, {g.relative:.1e} relative{rounded}"
            )
        return f"{self.verdict:<{len(DIFFERENCE)}}  {self.name}: {'; '.join([*parts, *self.reasons])}"


def replay_of(name: str) -> Replay:
    """The replay of a file. Raises GoldenMismatch if its name stands for none."""
    for prefix, replay in REPLAYS:
        if name.startswith(prefix):
            return replay
    if name.endswith("_module_route"):
        return replay_streams.replay_block
    known = ", ".join(prefix for prefix, _ in REPLAYS)
    raise GoldenMismatch(f"no replay for this kind of file; known names begin with {known}")


def check(path: Path) -> Report:
    """Replays one file; whatever goes wrong is a mismatch with its reason."""
    golden = None
    try:
        golden = load_golden(path)
        replay_of(path.stem)(golden)
        golden.finish()
    except GoldenMismatch as error:
        return Report(path.stem, MISMATCH, golden, [str(error).removeprefix(f"{path.stem}: ")])
    except Exception as error:
        # A file from elsewhere may be broken in any way: that is a result of this command, not its failure.
        told = " ".join(str(error).split()) or "no message"
        return Report(path.stem, MISMATCH, golden, [f"cannot be replayed: {type(error).__name__}: {told}"])
    reasons = []
    for name, size in golden.sizes.items():
        measured = "" if size is None else f" (changes values by up to {size:.1e})"
        reasons.append(f"{BY_NAME[name].reason} [{name}]{measured}")
    return Report(path.stem, DIFFERENCE if reasons else MATCH, golden, reasons)


def main(argv: list[str]) -> int:
    """The command; returns its exit code. Raises: ConfigError: not one folder is named."""
    if len(argv) != 1:
        raise ConfigError("name one folder of golden files: python -m parity_tests.golden DIR")
    folder = as_path("DIR", argv[0])
    files = files_in(folder, "*.npz") if folder.is_dir() else []
    if not files:
        what = "holds no .npz files" if folder.is_dir() else "is not a folder"
        complain(f"error: DIR={str(folder)!r} {what}; give a folder of golden files")
        return 2
    jax.config.update("jax_enable_x64", True)
    verdicts = []
    for path in files:
        report = check(path)
        verdicts.append(report.verdict)
        say(report.line())
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (MATCH, DIFFERENCE, MISMATCH))
    say(f"{len(files)} files: {counts}")
    return int(MISMATCH in verdicts)


if __name__ == "__main__":
    cli.run_command(main)
