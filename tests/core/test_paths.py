"""Texts that name files: an empty one is refused by every flag and key, commas may stand in names, and what
operating systems leave in folders is nobody's text."""

import ast
import os
import tempfile
from pathlib import Path, PurePath

import pytest

from hope_jax import cli, digest, launch, verify
from hope_jax.config.values import key_paths, key_type, resolve
from hope_jax.core import paths
from hope_jax.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
NO_PATHS = {
    "config_override", "contexts", "coordinator", "distributed", "hosts", "lengths", "memorize_layers",
    "memorize_paths", "niah_tasks", "only", "option", "prompt", "rates", "sha256", "step", "text_field",
    "topology", "zeroshot_tasks",
}  # fmt: skip
"""Flags whose values are texts, and name no file or folder."""


def calls(*names: str) -> dict[str, str]:
    """Flag -> module, of calls of `names` whose first argument is a literal text."""
    found = {}
    for path in sorted((ROOT / "hope_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func
                if (called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)) in names:
                    found[str(node.args[0].value)] = path.name
    return found


def test_every_flag_of_text_is_a_path_or_known_to_be_none() -> None:
    texts = calls("DEFINE_string", "DEFINE_multi_string", "DEFINE_list")
    assert set(texts) - NO_PATHS == set(), "define a path with cli.define_path, or name the flag in NO_PATHS"
    assert len(calls("define_path", "define_paths")) > 10


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_a_path_flag_refuses_an_empty_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command(launch.main, ["launch", f"--workdir={text}"])
    assert caught.value.code == 2
    assert "flag --workdir=" in (err := capsys.readouterr().err) and "this is empty" in err
    with pytest.raises(ValueError, match="want a path, and this is empty"):
        cli.PathParser().parse(text)


@pytest.mark.parametrize("main", [digest.main, verify.main])
def test_an_argument_may_not_be_empty(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command(main, ["command", ""])  # type: ignore[arg-type]
    assert caught.value.code != 0 and "this is empty" in capsys.readouterr().err


def test_every_text_of_the_configuration_refuses_an_empty_one() -> None:
    texts = [path for path, *_ in key_paths() if key_type(path) is str]
    assert {"data.source", "data.tokenizer"} <= set(texts)
    for path in texts:
        group: object = " "
        for name in reversed(path.split(".")):
            group = {name: group}
        with pytest.raises(ConfigError, match=f"{path.split('.')[-1]}: want text that is not empty"):
            resolve(group)  # type: ignore[arg-type]


def test_commas_between_paths_and_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c", "a", "x,y,z"):
        (tmp_path / name).mkdir()

    def split(text: str) -> list[str]:
        return [str(path) for path in paths.split_paths("--checkpoint", text)]

    assert split("a,b") == ["a,b"] and split("c,a") == ["c", "a"] and split("b,a") == ["b", "a"]
    assert split("c,a,b,x,y,z,nowhere,else") == ["c", "a,b", "x,y,z", "nowhere", "else"]
    for text in ("", ",", "a,", ",a", "a,,c", "c, ,a"):
        with pytest.raises(ConfigError, match="--checkpoint=.*one of them is empty"):
            split(text)


def test_what_systems_leave_in_folders_is_not_listed(tmp_path: Path) -> None:
    for name in ("a.txt", "b/.hidden.txt", "._a.txt", "__MACOSX/a.txt", "b/@eaDir/c.txt", ".nfs01.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = paths.files_in(tmp_path, "**/*.txt", "*.txt")
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.txt", "b/.hidden.txt"]
    assert paths.is_left_behind(PurePath("d/Thumbs.db")) and not paths.is_left_behind(PurePath("d/x._y"))


def test_temporary_files_find_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setenv("TMPDIR", "before")
    paths.make_room(tmp_path / "unused")
    assert os.environ["TMPDIR"] == "before" and not (tmp_path / "unused").exists()
    monkeypatch.setattr(tempfile, "gettempdir", none)
    paths.make_room(tmp_path / "run")
    assert os.environ["TMPDIR"] == str(tmp_path / "run") and (tmp_path / "run").is_dir()
