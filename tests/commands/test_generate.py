"""The command that continues a text: what it prints, keeps, and refuses."""

import itertools
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from absl.testing import flagsaver

from hope_jax import calibrate, cli, generate
from hope_jax.config.values import resolve
from hope_jax.core.errors import ClosedOutput, OutputError
from hope_jax.storage import arrays, memory_file
from hope_jax.storage.stored import load_checkpoint
from hope_jax.storage.trained import Trained, prepare, read_text
from tests.checkpoints import save_small, small_config

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("run"), small_config())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`python -m hope_jax.generate ARGUMENTS` in this process."""
    ours = logging.getLogger("hope_jax")
    before = ours.handlers, ours.propagate, ours.level

    def run(*arguments: object) -> Done:
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
            cli.run_command(generate.main, ["generate", *map(str, arguments)])
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    yield run
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])


def model_of(workdir: Path) -> Trained:
    loaded = load_checkpoint(workdir, ("params", "fast"))
    return prepare(loaded, resolve(loaded.config))


def saved(workdir: Path, path: Path) -> Any:
    model = model_of(workdir)
    owner = memory_file.owner_of(model.streamer, model.params)
    return memory_file.load_memory(path, model.streamer, model.params, owner)


def size_of(fast: Any) -> float:
    """Of all that teach-driven memories have written."""
    leaves = arrays.named(fast).items()
    return sum(float(np.abs(np.asarray(leaf)).sum()) for name, leaf in leaves if ".delta." in name)


def test_two_calls_with_the_memory_between_are_one(command: Any, workdir: Path, tmp_path: Path) -> None:
    """Text, and to the last bit the memory: all calls have an attention cache of 64 tokens."""
    given = f"--checkpoint={workdir}"
    whole = command(given, "--prompt=The king said", "--max_tokens=40", f"--save_memory={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    first = command(given, "--prompt=The king said", "--max_tokens=30", f"--save_memory={tmp_path / 'm'}")
    second = command(
        given, f"--memory={tmp_path / 'm'}", "--max_tokens=10", f"--save_memory={tmp_path / 'm'}"
    )
    assert whole.out.endswith("\n") and first.out[:-1] + second.out == whole.out
    digest = memory_file.digest(tmp_path / "whole")
    assert digest == memory_file.digest(tmp_path / "m")
    assert f"memory of {saved(workdir, tmp_path / 'm').position} tokens in" in second.err
    assert digest in whole.err and digest in second.err
    assert size_of(saved(workdir, tmp_path / "m").fast) > 0


def test_a_prompt_goes_on_in_the_saved_stream(command: Any, workdir: Path, tmp_path: Path) -> None:
    given, memory = f"--checkpoint={workdir}", tmp_path / "m"
    assert command(given, "--prompt=Let there", "--max_tokens=0", f"--save_memory={memory}").out == "\n"
    later = command(given, f"--memory={memory}", "--prompt= be light", "--max_tokens=12")
    assert (
        later.code == 0 and later.out == command(given, "--prompt=Let there be light", "--max_tokens=12").out
    )
    assert later.out != command(given, "--prompt= be light", "--max_tokens=12").out


def test_write_says_what_the_memories_learn_from(command: Any, workdir: Path, tmp_path: Path) -> None:
    text, written = "In the beginning God created the heaven and the earth", {}
    prompt = len(model_of(workdir).tokenizer.encode(text))
    for write in ("prompt", "all", "none"):
        path = tmp_path / write
        done = command(
            f"--checkpoint={workdir}", f"--prompt={text}",
            "--max_tokens=20", f"--save_memory={path}", f"--write={write}",
        )  # fmt: skip
        assert done.code == 0, done.err
        stream = saved(workdir, path)
        written[write] = size_of(stream.fast)
        counts = int(stream.sums.tokens) + int(stream.recent.target_mask[:, 1:].sum())
        assert counts <= {"prompt": prompt, "all": prompt + 20, "none": 0}[write]
    assert written["none"] == 0 < written["prompt"] < written["all"]


def test_temperature_and_seed(command: Any, workdir: Path) -> None:
    def text(*options: str) -> str:
        return str(command(f"--checkpoint={workdir}", "--prompt=Amen", "--max_tokens=12", *options).out)

    assert text("--seed=1") == text("--seed=1") != text("--seed=2")
    assert text("--seed=1", "--temperature=0") == text("--seed=2", "--temperature=0")


def test_a_drawn_eos_ends_the_text_and_is_remembered(
    command: Any, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter([300, 2, 301])
    monkeypatch.setattr("hope_jax.learning.sampling.draw", lambda *args: np.int32(next(draws)))
    done = command(
        f"--checkpoint={workdir}", "--prompt=Amen", "--max_tokens=3", f"--save_memory={tmp_path / 'm'}"
    )
    assert done.code == 0 and next(draws) == 301
    assert saved(workdir, tmp_path / "m").recent.tokens[0, -2:].tolist() == [300, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--prompt=a", 2, "--checkpoint is missing; want a workdir"),
        ("--checkpoint=WORKDIR", 2, "--prompt is empty; want text to continue, or --memory=FILE"),
        ("--checkpoint=WORKDIR --prompt=a b", 2, "unexpected argument 'b'"),
        ("--checkpoint=WORKDIR --promt=a", 2, "Did you mean: prompt"),
        ("--checkpoint=WORKDIR --prompt=a --write=some", 2, "should be one of <prompt|all|none>"),
        ("--checkpoint=WORKDIR --prompt=a --max_tokens=-1", 2, "max_tokens"),
        ("--checkpoint=WORKDIR --prompt=a --temperature=-1", 2, "temperature"),
        ("--checkpoint=WORKDIR --prompt=a --temperature=nan", 2, "--temperature=nan: want a finite number"),
        ("--checkpoint=WORKDIR --prompt=a --seed=x", 2, "seed"),
        ("--checkpoint=WORKDIR --prompt=a --save_memory=WORKDIR", 2, "is a folder; name a file in it"),
        ("--checkpoint=absent --prompt=a", 1, "no such folder; name a workdir"),
        ("--checkpoint=WORKDIR --memory=absent", 1, "absent: cannot be read (No such file"),
    ],
)
def test_wrong_usage_is_one_line(
    command: Any, workdir: Path, arguments: str, code: int, message: str
) -> None:
    done = command(*shlex.split(arguments.replace("WORKDIR", str(workdir))))
    assert (done.code, done.out) == (code, "")
    assert message in done.err and done.err.startswith("error: ") and len(done.err.splitlines()) == 1


def test_memories_of_another_model_or_of_several_streams_are_refused(
    command: Any, workdir: Path, tmp_path: Path
) -> None:
    model, path = model_of(workdir), tmp_path / "m"
    owner = memory_file.owner_of(model.streamer, model.params)
    stream = read_text(model, model.streamer.begin(model.params, 1, 0), "a", targets=True)
    memory_file.save_memory(path, model.streamer, stream, owner._replace(params="0" * 64))
    done = command(f"--checkpoint={workdir}", f"--memory={path}")
    assert (done.code, done.out) == (1, "")
    assert f"memory of other parameters (digest {'0' * 64}, here {owner.params})" in done.err
    two = model.streamer.begin(model.params, 2, 0)
    memory_file.save_memory(path, model.streamer, two, owner)
    done = command(f"--checkpoint={workdir}", f"--memory={path}")
    assert done.code == 2 and "holds 2 streams; want one" in done.err


def test_the_module_runs_in_double_precision_and_prints_the_text_alone(tmp_path: Path) -> None:
    """A process that nobody has told of float64."""
    save_small(tmp_path, small_config(train={"steps": 2, "compute_dtype": "float64"}))
    arguments = [f"--checkpoint={tmp_path}", "--prompt=Amen", "--max_tokens=4", "--temperature=0"]
    done = subprocess.run(
        [sys.executable, "-m", "hope_jax.generate", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 1 and not done.stderr


@pytest.fixture
def in_tour(workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which `runs/tour` is a workdir, as the documentation has it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tour").symlink_to(workdir)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/streaming.md"])
def test_documented_commands_run(page: str, command: Any, in_tour: None) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^python -m hope_jax\.generate (.*)$", text, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        done = command(*shlex.split(line))
        assert done.code == 0 and done.out.strip(), done.err
    assert memory_file.digest(Path("runs/genesis.memory"))


def test_documented_python_runs(in_tour: None, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/streaming.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    count = 1 + len(names["model"].tokenizer.encode("In the beginning"))
    assert capsys.readouterr().out == f"{count} True\n"
    assert names["logits"].shape == (1, 1024)


def test_help_has_the_flags_of_this_command_alone(command: Any) -> None:
    done = command("--help")
    flags = set(re.findall(r"^--(\w+)", done.out, re.MULTILINE))
    assert done.code == 0 and {"checkpoint", "prompt", "memory", "save_memory", "write", "seed"} <= flags
    assert "orbax" not in done.out and calibrate.main.__doc__


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ClosedOutput("gone"), 141, ""),
        (OutputError("the output cannot be written"), 1, "error: the output cannot be written\n"),
    ],
)
def test_a_memory_is_saved_whole_where_the_text_cannot_be_printed(
    raised: Exception, code: int, message: str,
    command: Any, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = [f"--checkpoint={workdir}", "--prompt=Amen", "--max_tokens=8"]
    whole = command(*given, f"--save_memory={tmp_path / 'whole'}")

    def fail(text: str, end: str) -> None:
        raise raised

    monkeypatch.setattr(generate, "say", fail)
    done = command(*given, f"--save_memory={tmp_path / 'lost'}")
    assert (done.code, done.out) == (code, "") and done.err.endswith(message)
    assert memory_file.digest(tmp_path / "lost") in whole.err
    assert command(*given).code == code


def test_ctrl_c_keeps_the_memory_of_what_was_drawn(
    command: Any, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--checkpoint={workdir}", "--prompt=Amen"]
    whole = command(*given, "--max_tokens=3", f"--save_memory={tmp_path / 'whole'}")
    shown = itertools.count(1)

    def interrupt(text: str, end: str) -> None:
        if next(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(generate, "say", interrupt)
    done = command(*given, "--max_tokens=500", f"--save_memory={tmp_path / 'm'}")
    assert done.code == 130
    assert saved(workdir, tmp_path / "m").position == saved(workdir, tmp_path / "whole").position
    assert whole.code == 0
