"""The command that makes a release bundle, and the release checklist, line by line, on a small model."""

import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from absl.testing import flagsaver

from hope_jax import calibrate, cli, compilation_cache, digest, generate, launch, package, verify
from hope_jax.config import assemble
from hope_jax.models.lm import HopeModel
from hope_jax.storage import arrays, weights
from hope_jax.training import telemetry
from tests.checkpoints import small_config
from tests.own_flags import own_flags

ROOT = Path(__file__).parents[2]
COMMANDS = {
    module.__name__.split(".")[-1]: module
    for module in (calibrate, digest, generate, launch, package, verify)
}
CONFIG = """
from hope_jax.config.experiment import base_config, level

def get_config():
    config = base_config()
    config.model.update({"vocab_size": 1024, "dim": 16, "num_layers": 1, "heads": 2})
    config.cms.levels = {"fast": level(update_period=8, lr=0.1)}
    config.data.update({"seq_len": 32, "batch_size": 2, "tokenizer": "own.model"})
    config.train.steps = 2
    config.eval.update({"batches": 1, "generate_tokens": 0})
    config.log.tensorboard = False
    return config
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run(line: str) -> Done:
    """One line of a shell: our commands in this process, all others in one of their own."""
    words = shlex.split(line)
    name = words[2].removeprefix("hope_jax.") if words[:2] == ["python", "-m"] else ""
    if name not in COMMANDS:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True)
        return Done(done.returncode, done.stdout, done.stderr)
    out, err, ours = StringIO(), StringIO(), logging.getLogger("hope_jax")
    before = ours.handlers, ours.propagate, ours.level
    try:
        own = own_flags(verify, "json") if name == "verify" else nullcontext()
        with own, flagsaver.flagsaver(), redirect_stdout(out), redirect_stderr(err):
            cli.run_command(COMMANDS[name].main, words[2:])
    except SystemExit as error:
        return Done(int(error.code or 0), out.getvalue(), err.getvalue())
    finally:
        ours.handlers, ours.propagate = before[:2]
        ours.setLevel(before[2])
    raise AssertionError("run_command returned")


def checklist() -> list[str]:
    text = (ROOT / "docs/release_checklist.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


class Released(NamedTuple):
    """folder: where the checklist was run. done: what each line left."""

    folder: Path
    done: dict[str, Done]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    folder = tmp_path_factory.mktemp("release")
    (folder / "configs").mkdir()
    (folder / "configs" / "pilot_smoke.py").write_text(CONFIG)
    shutil.copyfile(ROOT / "hope_jax/data/assets/unigram_1024.model", folder / "own.model")
    venv = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.setattr(telemetry, "measure_matmul_peak", lambda: 1e9)
        patch.setattr(compilation_cache, "use", lambda: None)
        patch.setenv("PATH", venv)
        yield Released(folder, {line: run(line) for line in checklist()})


def only(released: Released, *parts: str) -> Done:
    (found,) = [done for line, done in released.done.items() if all(part in line for part in parts)]
    return found


def test_every_line_of_the_checklist_runs(released: Released) -> None:
    assert len(released.done) == len(checklist()) >= 15
    for line, done in released.done.items():
        assert done.code == 0, f"{line}\n{done.err}"


def test_its_lines_print_what_it_says(released: Released) -> None:
    shown = only(released, "package").out.split()[-1]
    digests = {only(released, "digest", where).out.strip() for where in ("runs/release", "release/pilot")}
    assert digests == {shown} and len(shown) == 64
    for verified in (only(released, "verify release/pilot"), only(released, "verify release/unpacked")):
        assert "good, " in verified.out and shown in verified.out
    places = ("runs/release", "release/unpacked/pilot")
    texts = [only(released, "generate", f"={where} ").out for where in places]
    assert texts[0] == texts[1] and len(texts[0]) > 1
    assert len(only(released, "generate", "release_titan").out) > 1
    assert "## Evaluations\n\nNone are in this folder" in only(released, "MODEL_CARD").out
    assert re.search(r"^all +0\.03 ", only(released, "calibrate").out, re.MULTILINE)


def test_moved_and_alone_the_bundle_generates_and_calibrates_alike(released: Released) -> None:
    """The runs are gone, and the file that `data.tokenizer` named."""
    for name in ("runs", "own.model", "configs"):
        (released.folder / name).rename(released.folder / f"gone_{name}")
    (released.folder / "release" / "pilot").rename(released.folder / "moved")
    try:
        given = '--prompt="In the beginning" --max_tokens=16'
        text = run(f"python -m hope_jax.generate --checkpoint=moved {given}")
        before = only(released, "generate", "=runs/release ")
        assert text.code == 0 and text.out == before.out
        options = "--rates=0.03 --config.eval.batches=1"
        assert (
            run(f"python -m hope_jax.calibrate --checkpoint=moved {options}").out
            == only(released, "calibrate").out
        )
        assert run("python -m hope_jax.verify moved --json").code == 0
    finally:
        (released.folder / "moved").rename(released.folder / "release" / "pilot")
        for name in ("runs", "own.model", "configs"):
            (released.folder / f"gone_{name}").rename(released.folder / name)


def test_verify_names_the_bad_file_of_a_bundle(released: Released, tmp_path: Path) -> None:
    root = Path(shutil.copytree(released.folder / "release" / "pilot", tmp_path / "bundle"))
    (root / "summary.json").write_text("{}")
    done = run(f"python -m hope_jax.verify {root} --json")
    assert done.code == 1 and f'"bad": "{root / "summary.json"}"' in done.out
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--checkpoint=runs/release", 2, "--out is missing"),
        ("--out=x", 2, "--checkpoint is missing"),
        ("--checkpoint=runs/release --out=x y", 2, "unexpected argument 'y'"),
        ("--checkpoint=runs/release --out=release/pilot", 2, "exists and is no empty folder; name another"),
        ("--checkpoint=runs/release --out=x --evals=configs", 2, "no folder with .json files"),
        ("--checkpoint=absent --out=x", 1, "no such folder"),
        ("--checkpoint=runs/release --out=x --baseline=release", 1, "holds no checkpoint"),
    ],
)
def test_wrong_usage_is_one_line(released: Released, arguments: str, code: int, message: str) -> None:
    before = sorted(released.folder.rglob("*"))
    done = run(f"python -m hope_jax.package {arguments}")
    assert (done.code, done.out) == (code, "") and message in done.err
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1
    assert sorted(released.folder.rglob("*")) == before


MODELS: list[dict[str, Any]] = [
    {"block_variant": variant, "style": style}
    for variant in ("transformer", "hope_attention", "hope_hybrid", "hope_selfmod", "titan", "gated_deltanet")
    for style in ("modern", "reference")
] + [{"block_variant": "transformer_pp"}]


def test_the_name_map_covers_every_parameter_of_every_variant() -> None:
    """Every array has a meaning and as many axes as that says, of the widths that they name; nothing in the
    map is left over."""
    widths = {"layer": {2}, "vocab": {1000}, "dim": {16}, "head_dim": {8}, "window": {7, 4}, "level": {2}}
    widths["one"] = {1}
    hidden = {"mlp": {48, 32}, "cms": {80}, "titan": {96}, "self_mod": {16}}
    used = set()
    for index, model in enumerate(MODELS):
        config = small_config(
            model={
                **{"vocab_size": 1000, "num_layers": 2, "local_conv_window": 7, "mlp_multiplier": 3},
                **model,
            },
            cms={"connection": "independent" if index % 2 else "sequential", "hidden_multiplier": 5},
            titan={
                "hidden_multiplier": 6,
                "level": {"optimizer": "titans" if index % 2 else "momentum"},
            },
            self_modifying_titans={"adaptive_q": bool(index % 2), "local_conv_window": 7},
        )
        params = jax.eval_shape(HopeModel(assemble.model_spec(config)).init_params, jax.random.key(0))
        for name, leaf in arrays.named(params).items():
            used.add(weights.kind_of(name))
            axes = weights.describe(name)["axes"]
            assert len(axes) == leaf.ndim, name
            for axis, size in zip(axes, leaf.shape, strict=True):
                known = hidden[name.split(".")[1]] if axis == "hidden" else widths.get(axis, {size})
                assert size in known, (name, axis, size)
    assert used == set(weights.ARRAYS)
    with pytest.raises(KeyError, match="in no entry"):
        weights.describe("blocks.other.w")


def test_the_documented_name_map_is_current() -> None:
    page = (ROOT / "docs/release.md").read_text(encoding="utf-8")
    script = runpy.run_path(str(ROOT / "docs/make_weight_names.py"))
    assert script["renewed"](page) == page and script["render"]() in page, "run docs/make_weight_names.py"
