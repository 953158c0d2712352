"""Release bundles: whole and self-sufficient, or not there at all."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hope_jax.config.values import resolve
from hope_jax.core.errors import BundleError, CheckpointError, ConfigError
from hope_jax.release import bundle
from hope_jax.storage import seal, stored
from hope_jax.storage.digests import BadFileError
from hope_jax.storage.trained import prepare, read_text
from tests.release.bundles import LOGS, Runs, contents, first_bad, save_run


def logits(checkpoint: Path) -> np.ndarray:
    """Those after a text."""
    loaded = stored.load_checkpoint(checkpoint, ("params", "fast"))
    model = prepare(loaded, resolve(loaded.config))
    text = "In the beginning God created the heaven and the earth."
    stream = read_text(model, model.streamer.begin(model.params, 1, 0), text, targets=True)
    return np.asarray(model.streamer.last_logits(model.params, stream))


def test_a_bundle_is_whole_and_verified(made: Path, runs: Runs) -> None:
    found = bundle.verify(made)
    assert found.digest == stored.digest_of(runs.main) == stored.digest_of(made)
    held = contents(made)
    assert found.files == len(held)
    for where, run in (("", runs.main), ("baselines/titan/", runs.titan)):
        assert {f"{where}{name}" for name in (*LOGS, "config.yaml", "tokenizer.model")} <= held.keys()
        assert held[f"{where}config.yaml"] == (run / "checkpoints" / "2.yaml").read_bytes()
        for name, content in contents(run).items():
            assert held[f"{where}{name}"] == content
    assert [n for n in held if n.startswith("evals/")] == ["evals/some_evals/deep/niah.json"]
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "MANIFEST.txt"], cwd=made, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == found.files - 1


def test_metadata_names_the_runs_and_every_digest(made: Path) -> None:
    meta = json.loads((made / "metadata.json").read_text())
    assert (meta["format"], meta["version"]) == ("hope_jax bundle", 1)
    assert meta["checkpoint"]["step"] == 2 and meta["baselines"]["titan"]["step"] == 2
    assert meta["checkpoint"]["checkpoint_digest"] != meta["baselines"]["titan"]["checkpoint_digest"]
    assert meta["packaged_with"]["jax"] and "packaged_at_revision" in meta
    assert meta["evals"] == ["evals/some_evals/deep/niah.json"]
    assert meta["files"].keys() == contents(made).keys() - {"MANIFEST.txt", "metadata.json"}


def test_moved_and_alone_it_gives_the_same_logits(tmp_path: Path) -> None:
    """Neither the workdirs nor the tokenizers that they named are there any more."""
    main = save_run(tmp_path / "main", tmp_path / "own.model")
    titan = save_run(tmp_path / "titan", tmp_path / "other.model", block_variant="titan")
    before = [logits(main), logits(titan)]
    bundle.write(tmp_path / "bundle", main, [titan])
    for path in (main, titan):
        shutil.rmtree(path)
    (tmp_path / "own.model").unlink(), (tmp_path / "other.model").unlink()
    (tmp_path / "bundle").rename(tmp_path / "moved")
    after = [logits(tmp_path / "moved"), logits(tmp_path / "moved" / "baselines" / "titan")]
    assert all(
        np.isfinite(a).all() and a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True)
    )
    assert before[0].tobytes() != before[1].tobytes()


def test_the_card_says_what_is_known_and_what_is_not(made: Path, runs: Runs, tmp_path: Path) -> None:
    """Nothing of what the run logged after the checkpoint."""
    card = (made / "MODEL_CARD.md").read_text()
    for part in (
        "hope_attention",
        "| 5.5 | 2 |",
        "| 5.75 | 2 |",
        "| 6.125 | 2 |",
        "Jane Austen",
        "niah.json",
    ):
        assert part in card
    assert "0.125" not in card and "0.25 " not in card and "baselines/titan" in card
    assert "| all | 21,616 |" in card  # embed 1024 * 16, attention 4 * 16^2 + 2 * 8 + 16, CMS, final norm
    bare = tmp_path / "bare"
    shutil.copytree(runs.main / "checkpoints", bare / "checkpoints")
    bundle.write(tmp_path / "out", bare)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "The run left no log" in card and "None are in this folder: beyond" in card
    assert "trained on | `unknown`" in card
    assert bundle.verify(tmp_path / "out").files < 40


def test_equal_sources_give_equal_bytes_also_a_bundle_as_source(
    made: Path, runs: Runs, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    bundle.write(tmp_path / "empty", runs.main, [runs.titan], [runs.evals])
    assert contents(tmp_path / "empty") == contents(made)
    bundle.write(tmp_path / "again", made, [made / "baselines" / "titan"], [made / "evals" / "some_evals"])
    assert contents(tmp_path / "again") == contents(made)


def test_baselines_of_one_name_are_numbered(runs: Runs, tmp_path: Path) -> None:
    names = [runs.titan, runs.titan / "checkpoints" / "2", runs.titan / "checkpoints"]
    bundle.write(tmp_path / "out", runs.main, names)
    found = sorted(path.name for path in (tmp_path / "out" / "baselines").iterdir())
    assert found == ["titan", "titan-2", "titan-3"]
    bundle.verify(tmp_path / "out")


def test_what_cannot_be_bundled_leaves_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    bad = Path(shutil.copytree(runs.main, tmp_path / "bad"))
    (bad / "checkpoints" / "2" / "data" / "metadata").write_text("{}")
    unsealed = Path(shutil.copytree(runs.main, tmp_path / "unsealed"))
    (unsealed / "checkpoints" / "2.sha256").unlink()
    no_tokenizer = tmp_path / "no_tokenizer"
    save_run(no_tokenizer, tmp_path / "gone.model")
    (tmp_path / "gone.model").write_bytes((runs.main.parent / "own.model").read_bytes()[:-2])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.json").write_text("{")
    before = contents(tmp_path)
    out = tmp_path / "out"
    for arguments, error, message in [
        ((taken, runs.main), ConfigError, "exists and is no empty folder"),
        ((taken / "mine", runs.main), ConfigError, "exists and is no empty folder"),
        ((out, bad), BadFileError, "2/data/metadata"),
        ((out, runs.main, [bad]), BadFileError, "2/data/metadata"),
        ((out, unsealed), BadFileError, "was not finished"),
        ((out, tmp_path / "absent"), CheckpointError, "no such folder"),
        ((out, no_tokenizer), Exception, "tokenizer"),
        ((out, runs.main, [], [runs.titan / "checkpoints" / "2" / "state"]), ConfigError, "no folder with"),
        ((out, runs.main, [], [tmp_path / "broken"]), ConfigError, "is no JSON"),
        ((taken / "mine" / "below", runs.main), BundleError, "could not be written"),
    ]:
        with pytest.raises(error, match=message):
            bundle.write(*arguments)  # type: ignore[arg-type]
    assert contents(tmp_path) == before and not out.exists()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(BundleError, match="No space left"):
        patch.setattr(shutil, "copyfile", full)
        bundle.write(out, runs.main)
    assert contents(tmp_path) == before and sorted(tmp_path.glob(".*")) == []


def test_a_run_that_changes_while_it_is_copied_is_found(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def late(source: Path, target: Path) -> None:
        real(source, target)
        if target.name == "_METADATA":
            target.write_bytes(target.read_bytes() + b" ")

    monkeypatch.setattr(shutil, "copyfile", late)
    with pytest.raises(BadFileError, match=r"2/state/_METADATA: changed while it was copied"):
        bundle.write(tmp_path / "out", runs.main)
    assert not any(tmp_path.iterdir())


def test_only_what_a_bundle_holds_makes_one(made: Path, runs: Runs, copy: Path) -> None:
    assert bundle.is_bundle(made) and not bundle.is_bundle(runs.main)
    for name in ("MANIFEST.txt", "metadata.json"):
        (copy / name).unlink()
        assert bundle.is_bundle(copy) and first_bad(copy) == "MANIFEST.txt"


def test_a_checkpoint_of_the_bundle_verifies_alone(made: Path) -> None:
    found = stored.verify(made / "checkpoints" / "2")
    assert found.digest == seal.check(made / "checkpoints", 2).meta["checkpoint_digest"]


def test_a_stray_file_is_not_taken_along_and_in_a_bundle_it_is_bad(runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.main, tmp_path / "run"))
    (run / "checkpoints" / "2" / "state" / ".DS_Store").touch()
    bundle.write(tmp_path / "out", run)
    assert bundle.verify(tmp_path / "out").extra == () and not list(tmp_path.glob("out/**/.DS_Store"))
    (tmp_path / "out" / "checkpoints" / "2" / "state" / ".DS_Store").touch()
    for refuse in (
        bundle.verify,
        stored.load_checkpoint,
        lambda out: stored.verify(out / "checkpoints" / "2"),
    ):
        with pytest.raises(BadFileError, match=r"\.DS_Store: is in no list of digests"):
            refuse(tmp_path / "out")
