"""What a wheel holds, and that metadata and pinned sets agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built, without network, from a copy that has the other top-level folders too."""
    work = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "build", "runs", "*.egg-info")
    shutil.copytree(ROOT, work / "source", ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        + ["--wheel-dir", str(work), str(work / "source")],
        check=True,
        capture_output=True,
        text=True,
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        return wheel.namelist()


def test_wheel_installs_one_top_level_package(wheel_files: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hope_jax"}


def test_wheel_holds_every_module_and_asset(wheel_files: list[str]) -> None:
    held = set(wheel_files)
    assert set(package_files()) <= held
    assets = [p for p in (ROOT / "hope_jax/data/assets").iterdir() if p.is_file()]
    assert assets and {f"hope_jax/data/assets/{p.name}" for p in assets} <= held
    assert "hope_jax/report/page.html" in held


def package_files() -> Iterator[str]:
    for folder, target in (("hope_jax", "hope_jax"), ("kernels", "hope_jax/kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            if not path.name.startswith("test_"):
                yield f"{target}/{path.relative_to(ROOT / folder)}"


def test_every_package_folder_is_listed() -> None:
    folders = {str(Path(name).parent).replace("/", ".") for name in package_files()}
    assert sorted(folders) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines), "only NAME==VERSION"
    return {key.lower().replace("_", "-"): version for key, version in (line.split("==") for line in lines)}


def test_pinned_sets_agree_and_only_dev_has_torch() -> None:
    cpu, dev = pins("cpu.txt"), pins("dev.txt")
    assert "torch" not in cpu and dev["torch"] == "2.13.0"
    assert cpu.items() <= dev.items()
    assert not [name for name in cpu if name.startswith("nvidia")]


def test_every_dependency_is_pinned() -> None:
    names = [re.split(r"[\[>=<~! ]", d)[0] for d in PROJECT["project"]["dependencies"]]
    assert {name.lower().replace("_", "-") for name in names} <= set(pins("cpu.txt"))


def test_pins_are_within_the_ranges() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    pinned, seen = pins("dev.txt"), set()
    for text in (*PROJECT["project"]["dependencies"], *(each for extra in extras.values() for each in extra)):
        wanted = Requirement(text)
        name = wanted.name.lower().replace("_", "-")
        if name != "hope-jax":
            assert wanted.specifier.contains(pinned[name]), f"{text}: {pinned[name]} is pinned"
            seen.add(name)
    assert {"jax", "flax", "torch", "pytest"} <= seen


def test_devices_take_jax_from_the_same_range() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (plain,) = (text for text in PROJECT["project"]["dependencies"] if text.startswith("jax>"))
    for cuda in ("cuda12", "cuda13"):
        assert extras[cuda] == [plain.replace("jax", f"jax[{cuda}]")]
        assert cuda in (metadata("jax").get_all("Provides-Extra") or ())


@pytest.mark.parametrize("script", ["quickstart.sh", "check.sh", "check_newest.sh"])
def test_scripts_explain_themselves_from_any_folder(script: str, tmp_path: Path) -> None:
    path = ROOT / "launch" / script
    shown = subprocess.run([path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Usage: ./launch/") and "PYTHON" in shown.stdout
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


IMPORTED = """
import multiprocessing, sys
def here():
    import hope_jax.kernels.causal_conv
    from hope_jax import kernels
    return hope_jax.__file__, kernels.causal_conv.__file__
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*here(), *pool.apply(here), sep="\\n")
"""


def imported(checkout: Path, *path: Path, **variables: str) -> list[str]:
    """Files of hope_jax and of a kernel for a program in a checkout, and for a process that it spawns. path:
    what this Python has installed, beside the checkout of these tests."""
    program = checkout / "program.py"
    program.write_text(f"import sys; sys.path += {[str(p) for p in path]}\n{IMPORTED}")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    found = subprocess.run(
        [sys.executable, program], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another checkout."""
    ignore = shutil.ignore_patterns("__pycache__", "assets")
    for folder in ("hope_jax", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / "second" / folder, ignore=ignore)
    return tmp_path / "second"


def test_a_checkout_takes_its_own_kernels(second: Path, tmp_path: Path) -> None:
    """Where another is installed for editing (the tests' environment), or as a wheel, or where a folder
    without modules is left in the place that a wheel has them."""
    own = [str(second / "hope_jax/__init__.py"), str(second / "kernels/causal_conv/__init__.py")] * 2
    wheel = tmp_path / "site/hope_jax"
    shutil.copytree(second / "hope_jax", wheel)
    shutil.copytree(second / "kernels", wheel / "kernels")
    (second / "hope_jax/kernels").mkdir()
    assert imported(second, wheel.parent) == own
    # Without the program's folder in the path it is the installed one, as a whole.
    program = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(wheel.parent)}
    of_wheel = [str(wheel / "__init__.py"), str(wheel / "kernels/causal_conv/__init__.py")] * 2
    assert imported(second, **program) == of_wheel


def test_a_zipped_wheel_has_its_kernels_inside(second: Path, tmp_path: Path) -> None:
    shutil.move(second / "kernels", second / "hope_jax/kernels")
    zipped = Path(shutil.make_archive(str(tmp_path / "wheel"), "zip", second))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = imported(elsewhere, PYTHONPATH=str(zipped))
    assert found == [f"{zipped}/hope_jax/{name}__init__.py" for name in ("", "kernels/causal_conv/")] * 2


def test_a_copy_without_kernels_takes_none_from_elsewhere(second: Path) -> None:
    shutil.rmtree(second / "kernels")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        imported(second)
    assert "its kernels are neither in that folder, as a wheel has them, nor in" in caught.value.stderr


def test_the_newest_python_is_found_or_nothing_is_done(tmp_path: Path) -> None:
    """One of pyenv that works, not a command on PATH that fails, as pyenv's own do; without one a line."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("bash", "dirname", "sed"):
        (bin_folder / name).symlink_to(str(shutil.which(name)))
    for name in ("python3.13", "python3.12"):
        (bin_folder / name).write_text("#!/bin/sh\nexit 127\n")
        (bin_folder / name).chmod(0o755)
    environment = {"PATH": str(bin_folder), "HOME": str(tmp_path)}
    command = [bin_folder / "bash", ROOT / "launch/check_newest.sh"]
    skipped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert skipped.stdout.startswith("not run: there is no Python 3.12 or 3.13 here")
    there = tmp_path / ".pyenv/versions/3.12.1/bin"
    there.mkdir(parents=True)
    (there / "python").write_text(f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/log\n')
    (there / "python").chmod(0o755)
    dry = subprocess.run([*command, "--dry_run"], env=environment, capture_output=True, text=True, check=True)
    assert "# .venv-newest: made or reused, with this package[test] and the versions of today" in dry.stdout
    assert str(there) in (tmp_path / "log").read_text()
    named = [text for text in dry.stdout.split() if text.startswith(("tests/", "kernels/"))]
    assert named and all((ROOT / text.split("::")[0]).exists() for text in named)


def test_scripts_refuse_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "old_python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(old), "VENV": str(tmp_path / "venv")}
    result = subprocess.run(
        [ROOT / "launch/quickstart.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and "Python 3.10.1 is too old" in result.stderr
    assert not (tmp_path / "venv").exists()
