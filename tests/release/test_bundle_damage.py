"""Release bundles are honest about every byte that was changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hope_jax.release import bundle
from hope_jax.storage import digests
from hope_jax.storage.digests import BadFileError
from tests.damage import damage
from tests.release.bundles import contents, first_bad, reseal


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_its_file_named(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    root = Path(shutil.copytree(made, tmp_path / "c"))
    name = data.draw(st.sampled_from(sorted(contents(root))))
    other = damage(root / name, data).relative_to(root).as_posix()
    # A digest that was changed in MANIFEST.txt accuses the file that it is of.
    assert first_bad(root) in {name, other} or name == "MANIFEST.txt"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_other_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / "MANIFEST.txt").write_text(text, encoding="utf-8")
    assert first_bad(copy) == "MANIFEST.txt"


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "evals/../../outside", "./README", "a//b", "a\\x"]
)
def test_paths_that_leave_the_folder_are_not_followed(copy: Path, name: str) -> None:
    (copy.parent / "outside").write_bytes(b"secret")
    with (copy / "MANIFEST.txt").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert first_bad(copy) == "MANIFEST.txt"


def test_a_manifest_of_huge_size_is_not_read(copy: Path) -> None:
    with (copy / "MANIFEST.txt").open("r+b") as file:
        file.truncate(2**40)
    assert first_bad(copy) == "MANIFEST.txt"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["format", "version", "checkpoint", "baselines", "evals", "files"]), value=values)
def test_metadata_that_say_anything_else_are_refused(copy: Path, key: str, value: Any) -> None:
    """Under an honest MANIFEST.txt."""
    was = (copy / "metadata.json").read_bytes()
    reseal(copy, **{key: value})
    assert first_bad(copy) == "metadata.json"
    (copy / "metadata.json").write_bytes(was)


def test_metadata_that_are_no_object_or_of_another_version_are_refused(copy: Path) -> None:
    reseal(copy, version=2)
    with pytest.raises(BadFileError, match="has format version 2, this program reads 1"):
        bundle.verify(copy)
    for text in ("[]", "null", "{", "[" * 100_000, '{"format": 1}'):
        (copy / "metadata.json").write_text(text)
        names = [n for n in digests.files_below(copy, ".") if n != "MANIFEST.txt"]
        (copy / "MANIFEST.txt").write_text(digests.dump(digests.hash_files(copy, names)))
        assert first_bad(copy) == "metadata.json"


def test_honest_lists_over_other_content_are_not_enough(made: Path, tmp_path: Path) -> None:
    """Each part is held against the checkpoint that it belongs to."""

    def damaged(change: Any, **metadata: Any) -> str:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        root = Path(shutil.copytree(made, tmp_path / "c"))
        change(root)
        reseal(root, **metadata)
        return first_bad(root)

    def append(name: str) -> Any:
        return lambda root: (root / name).write_bytes((root / name).read_bytes() + b"\n")

    def other_state(root: Path) -> None:
        shutil.rmtree(root / "checkpoints" / "2" / "state")
        shutil.copytree(root / "baselines/titan/checkpoints/2/state", root / "checkpoints" / "2" / "state")

    def second_checkpoint(root: Path) -> None:
        shutil.copytree(root / "checkpoints" / "2", root / "checkpoints" / "3")

    assert damaged(append("tokenizer.model")) == "tokenizer.model"
    assert damaged(append("baselines/titan/tokenizer.model")) == "baselines/titan/tokenizer.model"
    assert damaged(append("config.yaml")) == "config.yaml"
    assert damaged(other_state).startswith("checkpoints/2/state/")
    assert damaged(second_checkpoint) == "checkpoints"
    assert damaged(lambda root: (root / "checkpoints/2").rename(root / "checkpoints/²")) == "checkpoints"
    assert damaged(lambda root: shutil.rmtree(root / "baselines")) == "metadata.json"
    assert damaged(lambda root: (root / "evals/extra.json").write_text("{}")) == "metadata.json"
    for name in ("weights.safetensors", "MODEL_CARD.md", "config.yaml", "tokenizer.model"):
        assert damaged(lambda root, name=name: (root / name).unlink()) == name
