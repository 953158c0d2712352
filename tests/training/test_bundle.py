"""Release bundles: whole, self-sufficient, and honest about every byte that was changed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hope_jax.config_schema import resolve
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.errors import BundleError, CheckpointError, ConfigError
from hope_jax.training import arrays, bundle, integrity, manifest, seal, stored, telemetry, weights
from hope_jax.training.inference import prepare, read_text
from hope_jax.training.manifest import BadFileError
from tests.checkpoints import save_small, small_config
from tests.damage import damage

pytestmark = pytest.mark.usefixtures("quick")

LOGS = ("metrics.jsonl", "summary.json", "report.html", "loss.png")
ROWS = [
    {"step": 1, "loss": 6.25},
    {"step": 2, "loss": 5.5, "eval_loss": 5.75, "unigram_entropy": 6.125},
    {"step": 9, "loss": 0.125, "eval_loss": 0.25},
]


class Runs(NamedTuple):
    """The workdirs of a model and its baseline, and evaluations."""

    main: Path
    titan: Path
    evals: Path


@pytest.fixture(scope="module", autouse=True)
def one_revision() -> Iterator[None]:
    """Bundles of one test agree also where someone commits meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "git_revision", lambda: "0" * 40)
        yield


def save_run(workdir: Path, tokenizer: Path, **model: Any) -> Path:
    """A checkpoint, and the logs of a run that went on after it."""
    tokenizer.write_bytes(Tokenizer.load("embedded").model)
    config = small_config(model=model)
    save_small(workdir, replace(config, data=replace(config.data, tokenizer=str(tokenizer))))
    for name in LOGS:
        (workdir / name).write_text(name)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return workdir


def logits(checkpoint: Path) -> np.ndarray:
    """Those after a text."""
    loaded = stored.load_checkpoint(checkpoint, ("params", "fast"))
    model = prepare(loaded, resolve(loaded.config))
    text = "In the beginning God created the heaven and the earth."
    stream = read_text(model, model.streamer.begin(model.params, 1, 0), text, targets=True)
    return np.asarray(model.streamer.last_logits(model.params, stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    evals = root / "some evals"
    (evals / "deep").mkdir(parents=True)
    (evals / "deep" / "niah.json").write_text('{"accuracy": 0.5}')
    (evals / "log.txt").write_text("not taken along")
    main = save_run(root / "main", root / "own.model")
    return Runs(main, save_run(root / "titan", root / "other.model", block_variant="titan"), evals)


@pytest.fixture(scope="module")
def made(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    bundle.write(out, runs.main, [runs.titan], [runs.evals])
    return out


@pytest.fixture(scope="module")
def loaded(made: Path) -> stored.LoadedCheckpoint:
    return stored.load_checkpoint(made)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def reseal(root: Path, **metadata: Any) -> None:
    """Honest lists over whatever the folder holds; `metadata` changes that file."""
    meta = json.loads((root / "metadata.json").read_text())
    names = [n for n in manifest.files_below(root, ".") if n not in ("MANIFEST.txt", "metadata.json")]
    meta = {**meta, "files": manifest.hash_files(root, names), **metadata}
    (root / "metadata.json").write_text(json.dumps(meta))
    digests = manifest.hash_files(root, sorted([*names, "metadata.json"]))
    (root / "MANIFEST.txt").write_text(manifest.dump(digests))


def first_bad(root: Path) -> str:
    with pytest.raises(BadFileError) as caught:
        bundle.verify(root)
    return Path(caught.value.path).relative_to(root).as_posix()


def test_a_bundle_is_whole_and_verified(made: Path, runs: Runs) -> None:
    found = bundle.verify(made)
    assert found.digest == integrity.digest(runs.main) == integrity.digest(made)
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


def test_names_that_no_list_can_hold_are_refused(runs: Runs, tmp_path: Path) -> None:
    for name in ("back\\slash", "line\u2028end", "bell\x07"):
        evals = tmp_path / "evals"
        evals.mkdir()
        (evals / f"{name}.json").write_text("{}")
        with pytest.raises(ConfigError, match="a list of digests cannot hold this name"):
            bundle.write(tmp_path / "out", runs.main, [], [evals])
        shutil.rmtree(evals)
        assert not any(tmp_path.iterdir())


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
        names = [n for n in manifest.files_below(copy, ".") if n != "MANIFEST.txt"]
        (copy / "MANIFEST.txt").write_text(manifest.dump(manifest.hash_files(copy, names)))
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


def test_weights_are_held_against_the_checkpoint_bit_for_bit(copy: Path) -> None:
    path = copy / "weights.safetensors"
    good, head = load_file(path), {"hope_jax": json.dumps(weights.load(path)[0])}
    embed = good["embed"]
    moved = embed.copy()
    moved[3, 4] = np.nextafter(moved[3, 4], 9)
    changes: list[tuple[dict[str, np.ndarray], str]] = [
        ({**good, "embed": moved}, "has another embed"),
        ({**good, "embed": embed.astype(np.float64)}, "has another embed"),
        ({**good, "embed": embed.T.copy()}, "has another embed"),
        ({**good, "more": embed}, "has more, which the checkpoint has not"),
        ({name: array for name, array in good.items() if name != "embed"}, "lacks embed"),
    ]
    for content, message in changes:
        save_file(content, path, metadata=head)
        reseal(copy)
        with pytest.raises(BadFileError, match=rf"weights\.safetensors: {message}"):
            bundle.verify(copy)
    for entry in ("null", "{", '{"format": "hope_jax weights", "version": 2, "step": 2}'):
        save_file(good, path, metadata={"hope_jax": entry})
        reseal(copy)
        assert first_bad(copy) == "weights.safetensors"
    save_file(good, path)
    reseal(copy)
    assert first_bad(copy) == "weights.safetensors"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_safetensors_are_refused(
    made: Path, loaded: stored.LoadedCheckpoint, tmp_path: Path, data: st.DataObject
) -> None:
    """Any bytes, huge declared sizes, and bits flipped in the header."""
    path, good = tmp_path / "weights.safetensors", (made / "weights.safetensors").read_bytes()
    huge = b'{"a":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,9223372036854775807]}}'
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, 300))] ^= 1 << data.draw(st.integers(0, 7))
    choices = [
        data.draw(st.binary(max_size=60)),
        (2**63).to_bytes(8, "little") + good[8:],
        len(huge).to_bytes(8, "little") + huge,
        good[: data.draw(st.integers(0, len(good) - 1))],
        bytes(flipped),
    ]
    path.write_bytes(data.draw(st.sampled_from(choices)))
    try:
        weights.check(path, loaded.state["params"], loaded.step)
    except BadFileError as error:
        assert error.path == "weights.safetensors"
    else:  # a flip in the words that describe an array
        assert path.read_bytes()[-1000:] == good[-1000:]


def test_exported_arrays_are_the_checkpoints_bit_for_bit(
    made: Path, loaded: stored.LoadedCheckpoint, tmp_path: Path
) -> None:
    params = arrays.named(loaded.state["params"])
    header, found = weights.load(made / "weights.safetensors")
    assert found.keys() == params.keys() == header["arrays"].keys() and header["step"] == 2
    for name, array in load_file(made / "weights.safetensors").items():
        assert array.dtype == params[name].dtype and array.tobytes() == params[name].tobytes()
        assert len(header["arrays"][name]["axes"]) == array.ndim
    rng = np.random.default_rng(0)
    for dtype in (jnp.bfloat16, np.float64):
        tree = {
            "embed": rng.normal(size=(5, 3)).astype(dtype).T,  # not as it lies in memory
            "blocks": {"self_mod": {"b_alpha": np.asarray([np.nan, -0.0]).astype(dtype)}},
        }
        digest = weights.save(tmp_path / "w", tree, 1)
        weights.check(tmp_path / "w", tree, 1)
        again = weights.load(tmp_path / "w")[1]
        assert arrays.digest(again) == digest == arrays.digest(arrays.named(tree))
        assert again["embed"].dtype == dtype and np.array_equal(again["embed"], tree["embed"])


def test_only_what_a_bundle_holds_makes_one(made: Path, runs: Runs, copy: Path) -> None:
    assert bundle.is_bundle(made) and not bundle.is_bundle(runs.main)
    for name in ("MANIFEST.txt", "metadata.json"):
        (copy / name).unlink()
        assert bundle.is_bundle(copy) and first_bad(copy) == "MANIFEST.txt"


def test_a_checkpoint_of_the_bundle_verifies_alone(made: Path) -> None:
    found = integrity.verify(made / "checkpoints" / "2")
    assert found.digest == seal.check(made / "checkpoints", 2)["checkpoint_digest"]


def test_the_suites_results_are_in_the_card_with_reports_and_plots(runs: Runs, tmp_path: Path) -> None:
    """Figures with interval, count, chance and leak; whose they are; what is no result stays behind."""
    params = stored.load_checkpoint(runs.main, ("params",)).state["params"]
    digest = arrays.digest(arrays.named({"params": params}))
    evals = tmp_path / "evals"
    for folder, whose in ((evals, digest), (evals / "baseline", "0" * 64)):
        (folder / "plots").mkdir(parents=True)
        (folder / "plots" / "piqa.png").write_bytes(b"png")
        (folder / "report.md").write_text("report")
        (folder / "piqa.partial.jsonl").write_text("{}")
        many = {
            f"t{i}/acc/baseline": {"value": 0.25, "ci95": None, "n": 1, "chance": None} for i in range(30)
        }
        metrics = {
            "piqa/acc/memorized": {"value": 0.5, "ci95": [0.4, 0.6], "n": 64, "chance": 0.5, "leak": True}
        }
        found = {"format": "hope_jax evaluation", "eval": "zeroshot", "metrics": metrics | many}
        subject = {"arrays_digest": whose, "checkpoint": "titan/checkpoints/2"}
        (folder / "zeroshot.json").write_text(json.dumps({**found, "subject": subject}))
    bundle.write(tmp_path / "bundle", runs.main, evals=[evals])
    held = [name for name in contents(tmp_path / "bundle") if name.startswith("evals/")]
    own = ["plots/piqa.png", "report.md", "zeroshot.json"]
    assert sorted(held) == sorted(f"evals/evals/{where}{name}" for where in ("", "baseline/") for name in own)
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "| `piqa/acc/memorized` | 0.5 [0.4, 0.6] LEAK | 64 | 0.5 |" in card
    assert "\n### zeroshot\n" in card and "### zeroshot of `titan/checkpoints/2`, not of this model" in card
    assert "7 more are in `evals/evals/zeroshot.json`." in card
    assert bundle.verify(tmp_path / "bundle").files > len(held)
