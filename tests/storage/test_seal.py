"""Sidecars of checkpoints against damage, mix-ups and hostile hands."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hope_jax import cli, digest, verify
from hope_jax.config.experiment import CheckpointConfig
from hope_jax.core.errors import CheckpointError
from hope_jax.optim.outer import Optim
from hope_jax.storage import digests, seal, stored
from hope_jax.storage.digests import BadFileError
from tests.damage import damage
from tests.own_flags import own_flags
from tests.training.toy import rows_of, toy_config, toy_train

CONTENT = {
    "8/state/d/a1": b"a" * 300,
    "8/state/manifest": bytes(range(256)),
    "8/data/metadata": b"{}",
    "8/meta/metadata": b"x",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints 8 and 16."""
    workdir = tmp_path_factory.mktemp("run")
    toy_train(workdir, toy_config(steps=16))
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    """A copy of it to be damaged."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def sealed(folder: Path) -> Path:
    for name, content in CONTENT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    seal.write(folder, 8, {"checkpoint_digest": "d"}, {"model": {"dim": 6}})
    return folder


def command(main, *arguments, capsys):
    with own_flags(verify, "json"), pytest.raises(SystemExit) as caught:
        cli.run_command(main, ["command", *map(str, arguments)])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_a_sealed_checkpoint_is_what_it_was(tmp_path):
    meta = seal.check(sealed(tmp_path), 8).meta
    assert meta["step"] == 8 and meta["checkpoint_digest"] == "d" and meta["version"] == seal.VERSION
    assert yaml.safe_load((tmp_path / "8.yaml").read_text()) == {"model": {"dim": 6}}


def test_sha256sum_reads_the_list(run):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "16.sha256"],
        cwd=run / "checkpoints",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed = digests.read_list(run / "checkpoints" / "16.sha256")
    below = {p.relative_to(run / "checkpoints").as_posix() for p in (run / "checkpoints" / "16").rglob("*")
             if p.is_file()}  # fmt: skip
    assert set(listed) == below | {"16.yaml", "16.meta.json"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_its_file_named(tmp_path, data):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = sealed(tmp_path / "c")
    path = folder / data.draw(st.sampled_from([*CONTENT, "8.yaml", "8.meta.json"]))
    other = damage(path, data)
    if other != path and path.exists():  # it is good, and another's file lies there too
        seal.check(folder, 8)
        if other.parent == folder:
            return
        assert seal.check(folder, 8).extra == [other.relative_to(folder).as_posix()]
        with pytest.raises(BadFileError) as caught:
            seal.check(folder, 8, strict=True)
        assert folder / caught.value.path == other
        return
    with pytest.raises(BadFileError) as caught:
        seal.check(folder, 8)
    assert folder / caught.value.path in (path, other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_other_list_is_refused(tmp_path, text):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = sealed(tmp_path / "c")
    (folder / "8.sha256").write_text(text, encoding="utf-8")
    with pytest.raises(BadFileError):
        seal.check(folder, 8)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "8/../../outside", "./8/data/metadata", "8//data/metadata", "8\\x"]
)
def test_paths_that_leave_the_folder_are_not_followed(tmp_path, name):
    folder = sealed(tmp_path / "c")
    (tmp_path / "outside").write_bytes(b"secret")
    lines = (folder / "8.sha256").read_text()
    (folder / "8.sha256").write_text(f"{lines}{'0' * 64}  {name}\n")
    with pytest.raises(BadFileError, match=r"8\.sha256"):
        seal.check(folder, 8)


def test_other_versions_formats_and_steps_are_refused(tmp_path):
    folder = sealed(tmp_path)
    meta = json.loads((folder / "8.meta.json").read_text())
    for change, message in [
        ({"version": 2}, "format version 2"),
        ({"format": "other"}, "no metadata of a checkpoint"),
        ({"step": 9}, "belongs to step 9"),
        ({"step": None}, "belongs to step None"),
        ({"config_digest": "0"}, "is not what 8.meta.json was written for"),
    ]:
        (folder / "8.meta.json").write_text(json.dumps({**meta, **change}))
        (folder / "8.sha256").unlink()
        names = sorted([*CONTENT, "8.yaml", "8.meta.json"])
        (folder / "8.sha256").write_text(digests.dump(digests.hash_files(folder, names)))
        with pytest.raises(BadFileError, match=message):
            seal.check(folder, 8)


def test_a_text_of_huge_size_is_not_read(tmp_path):
    folder = sealed(tmp_path)
    with (folder / "8.sha256").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(BadFileError, match="more than such a file ever is"):
        seal.check(folder, 8)


def test_verify_accepts_what_training_left(run, capsys):
    code, out, _ = command(verify.main, run, run / "checkpoints" / "8", "--json", capsys=capsys)
    whole, one = map(json.loads, out.splitlines())
    assert code == 0 and whole["ok"] and one["ok"] and whole["files"] > one["files"] > 4
    assert command(digest.main, run, capsys=capsys)[1].strip() == whole["digest"] != one["digest"]
    meta = json.loads((run / "checkpoints" / "16.meta.json").read_text())
    assert meta["checkpoint_digest"] == whole["digest"] and meta["tokenizer_digest"] == "toy"
    assert meta["data"] == {"next_batch": 16} and len(meta["rng"]) == 2
    assert meta["algorithm_mode"] == "online" and meta["online"]["memory"]["scope"] == "example"


def test_verify_names_the_first_bad_file(copy, capsys):
    bad = sorted((copy / "checkpoints" / "8" / "state").rglob("*"))[-1]
    bad.write_bytes(bad.read_bytes() + b"!")
    code, out, err = command(verify.main, copy, "--json", capsys=capsys)
    assert code == 1 and str(bad) in err
    assert json.loads(out)["bad"] == str(bad) and json.loads(out)["ok"] is False


def test_verify_recomputes_the_digest_of_the_arrays(copy):
    """A list made for other metadata is not enough."""
    folder = copy / "checkpoints"
    meta = json.loads((folder / "16.meta.json").read_text())
    config = yaml.safe_load((folder / "16.yaml").read_text())
    seal.write(folder, 16, {**meta, "checkpoint_digest": "0" * 64}, config)
    with pytest.raises(BadFileError, match="says checkpoint_digest"):
        stored.verify(copy)
    seal.write(folder, 16, meta, {**config, "model": {}})
    with pytest.raises(BadFileError, match=r"16\.meta\.json|16\.yaml"):
        stored.verify(copy)


def test_verify_and_digest_refuse_what_holds_no_checkpoint(tmp_path, capsys):
    for main in (verify.main, digest.main):
        assert command(main, tmp_path, capsys=capsys)[0] == 1
        assert command(main, capsys=capsys)[0] == 2


def test_arrays_swapped_between_runs_are_found_and_the_one_before_is_taken(copy, tmp_path, caplog):
    other = tmp_path / "other"
    toy_train(other, toy_config(steps=16, optim=Optim(lr=0.5)))
    mine = copy / "checkpoints" / "16" / "state"
    shutil.rmtree(mine)
    shutil.copytree(other / "checkpoints" / "8" / "state", mine)
    assert toy_train(copy, toy_config(steps=20))["steps"] == 20
    assert "Trying the checkpoint before it" in caplog.text and "resuming at step 8" in caplog.text
    assert (copy / "checkpoints" / "unreadable-16.sha256").exists()


def test_a_flipped_bit_is_found_on_restore_unless_verification_is_off(copy, caplog):
    config = copy / "checkpoints" / "16.yaml"
    config.write_text(config.read_text().replace("dim: 6", "dim: 7"))
    toy_train(copy, toy_config(steps=16, checkpoint=CheckpointConfig(every=8, verify=False)))
    assert "Trying the checkpoint before it" not in caplog.text
    toy_train(copy, toy_config(steps=16))
    assert "Trying the checkpoint before it" in caplog.text


def test_a_run_killed_before_the_seal_goes_on_from_the_checkpoint_before(run, copy, caplog):
    (copy / "checkpoints" / "16.sha256").unlink()
    toy_train(copy, toy_config(steps=16))
    assert "was not sealed" in caplog.text
    assert rows_of(copy) == rows_of(run) and stored.digest_of(copy) == stored.digest_of(run)


def test_an_only_checkpoint_without_a_seal_counts_and_is_sealed(copy, run, caplog):
    for step in (8, 16):
        (copy / "checkpoints" / f"{step}.sha256").unlink()
    toy_train(copy, toy_config(steps=16))
    assert "resuming at step 16" in caplog.text
    assert stored.verify_checkpoint(copy / "checkpoints", 16).digest == stored.digest_of(run)


def test_a_workdir_may_have_a_number_for_a_name(tmp_path):
    toy_train(tmp_path / "7", toy_config(steps=8))
    assert stored.verify(tmp_path / "7") == stored.verify(tmp_path / "7" / "checkpoints" / "8")


@pytest.mark.parametrize("name", ["016", "²", "-16", "1" * 40])
def test_only_plain_numbers_are_steps(copy, name):
    before = stored.verify(copy)
    shutil.copytree(copy / "checkpoints" / "16", copy / "checkpoints" / name)
    assert stored.verify(copy) == before
    with pytest.raises(CheckpointError):
        stored.verify(copy / "checkpoints" / name)


def test_a_checkpoint_that_is_gone_is_missed(copy):
    shutil.rmtree(copy / "checkpoints" / "8")
    with pytest.raises(BadFileError, match=r"checkpoints/8: is missing"):
        stored.verify(copy)


def test_a_byte_that_is_no_text_ends_the_rows_and_not_the_run(copy):
    metrics = copy / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:-1], b"\xff", lines[-1]]))
    toy_train(copy, toy_config(steps=20))
    assert rows_of(copy)[-1]["step"] == 20


def test_sidecars_go_with_their_checkpoint(tmp_path):
    toy_train(tmp_path, toy_config(checkpoint=CheckpointConfig(every=4, keep_last=2)))
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert {
        "16",
        "16.sha256",
        "16.meta.json",
        "16.yaml",
        "20",
        "20.sha256",
        "20.meta.json",
        "20.yaml",
    } == names


def test_huge_declared_arrays_are_refused_before_they_are_allocated(copy):
    """An honest list over metadata that declare 2^50 rows."""
    folder = copy / "checkpoints"
    state = folder / "16" / "state"
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{state}/", "path": "params.embed/"},
    }
    array = tensorstore.open(spec, open=True).result()
    array.resize(exclusive_max=[2**50, 6], expand_only=True).result()
    meta = json.loads((folder / "16.meta.json").read_text())
    seal.write(folder, 16, meta, yaml.safe_load((folder / "16.yaml").read_text()))
    with pytest.raises(CheckpointError, match=r"declares arrays of .* GiB"):
        stored.load_checkpoint(folder / "16")


def test_the_digest_depends_on_values_names_types_and_cursor_alone(run):
    loaded = stored.load_checkpoint(run)
    before = stored.digest(loaded)
    assert stored.digest(stored.load_checkpoint(run / "checkpoints" / "16")) == before
    params = dict(loaded.state["params"])
    moved = {**params, "embed": np.nextafter(params["embed"], 9)}
    assert stored.digest(loaded._replace(state={**loaded.state, "params": moved})) != before
    assert stored.digest(loaded._replace(data={"next_batch": 15})) != before


STRAYS = [
    ".DS_Store", "state/._manifest.ocdbt", "state/d/.nfs000000000001", "data/Thumbs.db", "meta/notes.txt",
    "__MACOSX/._8", "state/@eaDir/x", "state/array_metadatas/process_7",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_stray_file_takes_nothing_from_a_good_checkpoint(kind, run, copy, caplog, capsys):
    """One of each kind in every checkpoint, and beside them: the run goes on, and commands read it."""
    caplog.set_level("INFO", "hope_jax")
    for step in (8, 16):
        for name in [f"{step}/{stray}" for stray in STRAYS] + [".DS_Store", f"._{step}", f"._{step}.sha256"]:
            path = copy / "checkpoints" / name
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(b"\0\5\x16\7") if kind == "file" else path.symlink_to("/etc/hostname")
    assert stored.digest_of(copy) == stored.digest_of(run)
    assert toy_train(copy, toy_config(steps=17))["steps"] == 17
    assert "resuming at step 16" in caplog.text and "16/.DS_Store" in caplog.text
    assert not list((copy / "checkpoints").glob("unreadable*"))
    code, out, err = command(
        verify.main, copy / "checkpoints" / "16", copy / "checkpoints" / "8", "--json", capsys=capsys
    )
    newer, one = map(json.loads, out.splitlines())
    assert code == 0 and newer["ok"] and one["files"] == stored.verify(run / "checkpoints" / "8").files
    assert len(newer["extra"]) == len(one["extra"]) == len(STRAYS) and "8/.DS_Store" in err


def test_a_stray_file_excuses_no_damage(copy, caplog):
    caplog.set_level("INFO", "hope_jax")
    state = copy / "checkpoints" / "16" / "state"
    (state / ".DS_Store").touch()
    (state / "manifest.ocdbt").write_bytes(b"other")
    toy_train(copy, toy_config(steps=16))
    assert "resuming at step 8" in caplog.text


def test_what_others_may_take_away_again_is_not_sealed(tmp_path):
    (tmp_path / "8" / "state").mkdir(parents=True)
    stray = tmp_path / "8" / "state" / ".nfs0001"
    stray.touch()
    sealed(tmp_path)
    stray.unlink()
    assert seal.check(tmp_path, 8, strict=True).meta["step"] == 8
