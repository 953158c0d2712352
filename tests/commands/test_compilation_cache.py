"""Where compiled programs are kept."""

import pwd
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from hope_jax import compilation_cache

KEYS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {key: getattr(jax.config, key) for key in KEYS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    with flagsaver.flagsaver():
        yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache_module.reset_cache()


def use(*arguments: str) -> None:
    flags.FLAGS["compilation_cache"].unparse()
    flags.FLAGS(["test", *arguments])
    compilation_cache.use()


def test_default_is_in_the_users_cache_folder(tmp_path: Path) -> None:
    use()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "hope_jax" and folder == compilation_cache.default_folder()
    assert not folder.exists(), "made by JAX, when there is something to keep"


def test_cpus_of_different_features_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", info)
    folders = []
    for text in ("flags\t\t: sse avx2\n", "flags\t\t: sse avx2 avx512f\n", "flags : avx2 sse\n"):
        info.write_text(f"model name\t: any\n{text}")
        folders.append(compilation_cache.default_folder())
    assert folders[0] == folders[2] != folders[1]


def test_flag_names_the_folder_or_none(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", "set_by_the_user")
    use()
    assert jax.config.jax_compilation_cache_dir == "set_by_the_user"
    use(f"--compilation_cache={tmp_path / 'mine'}")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    use("--compilation_cache=none")
    assert not jax.config.jax_enable_compilation_cache


def test_a_user_without_home_and_account_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    use()
    assert compilation_cache.default_folder() is None and not jax.config.jax_enable_compilation_cache
    assert "there is no home folder: compiled programs are not kept" in caplog.text


@pytest.mark.parametrize("inside", ["", "made/by/us"])
def test_a_folder_that_cannot_be_written_keeps_nothing(
    inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # what root cannot write to either
    use(f"--compilation_cache={tmp_path / 'file' / inside}")
    assert not jax.config.jax_enable_compilation_cache
    assert "file" in caplog.text and "cannot be written: compiled programs are not kept" in caplog.text


def test_programs_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, "WORTHWHILE", 0.0)
    use(f"--compilation_cache={tmp_path / 'mine'}")
    compilation_cache_module.reset_cache()

    def kept() -> dict[Path, int]:
        def twice_the_sine(x: jax.Array) -> jax.Array:
            return 2 * jnp.sin(x)

        assert jax.jit(twice_the_sine)(jnp.zeros(3)).tolist() == [0, 0, 0]
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "mine").glob("jit_twice_the_sine*-cache")}

    first = kept()
    jax.clear_caches()
    assert len(first) == 1 and kept() == first
    (entry,) = first
    entry.write_bytes(entry.read_bytes()[:20])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        kept()
