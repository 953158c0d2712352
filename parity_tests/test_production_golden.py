"""Production code against the recorded numbers: the verdict of every file, and what the command reports."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.cms import Cms
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.period_write import LevelState, WriteRules
from hope_jax.memory.state import WriteSignal, own
from parity_tests import convert, golden
from parity_tests.difference_table import BY_NAME
from parity_tests.golden_file import DATA, FLOAT32_TOLERANCE, TOLERANCE, load_golden
from parity_tests.golden_file import golden as kept

STREAMS = ("attnblock", "hybrid", "level_clock", "memorize", "selfmod_block", "train_online")
DIFFERENT = ("optim_muon", "train_step_hope", *STREAMS)
"""What is not expected to match, by the beginning of a name."""

NIGHTLY = {
    *(f"attnblock_{case}" for case in ("differentiable", "gated", "nononline", "stream_flush", "train_clip")),
    *(f"smt_{case}" for case in ("chunk_4_4_noconv", "noskip_noqknorm", "plain_init_small_eta")),
    *("hybrid_nothreshold", "memorize_hope_attention_paths", "memorize_hope_hybrid"),
}
"""Kinds of which the default suite has other cases."""


def files() -> list[Any]:
    marks = {True: pytest.mark.nightly, False: ()}
    names = sorted(path.stem for path in DATA.glob("*.npz"))
    return [pytest.param(name, marks=marks[name in NIGHTLY]) for name in names]


@pytest.mark.parametrize("name", files())
def test_verdict(name: str) -> None:
    report = golden.check(DATA / f"{name}.npz")
    expected = golden.DIFFERENCE if name.startswith(DIFFERENT) else golden.MATCH
    assert report.verdict == expected, report.line()
    g = report.golden
    assert g is not None
    assert g.relative < TOLERANCE
    if expected == golden.MATCH:
        assert g.compared == len(g.outputs) and not g.left_out
    elif not name.startswith("level_clock"):
        # Whatever was read before a write of theirs is ours to the last digits.
        assert g.compared + g.parts
    for difference in g.sizes:
        stated = dict(BY_NAME[difference].sizes).get(name)
        measured = g.sizes[difference]
        assert (stated is None) == (measured is None), f"{difference}: measured {measured}, stated {stated}"
        assert stated is None or measured == pytest.approx(stated, rel=0.02)


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = golden.main([str(folder)])
    return code, capsys.readouterr().out.splitlines()


def save(path: Path, entries: dict[str, Any]) -> None:
    np.savez(path, **entries)


def entries_of(name: str) -> dict[str, Any]:
    with np.load(DATA / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def test_matching_folder_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("teach_plain", "optim_adamw"):
        shutil.copy(DATA / f"{name}.npz", tmp_path)
    code, lines = run(tmp_path, capsys)
    assert code == 0
    assert [line.split()[:2] for line in lines[:2]] == [["match", "optim_adamw:"], ["match", "teach_plain:"]]
    assert lines[2] == "2 files: 2 match, 0 deliberate difference, 0 mismatch"


@pytest.mark.parametrize(
    ("file", "entry", "change"),
    [
        ("teach_next", "out.teach_signal", 1e-9),
        ("cms_update_dmgd", "out.mean.step.2.delta.net.0.bias", 1e-9),
        ("optim_muon_default", "out.trajectory_float64_no_bf16.1", 1e-8),
        ("attnblock_aligned", "out.call.1.y", 1e-7),
    ],
)
def test_a_wrong_number_is_a_mismatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, entry: str, change: float
) -> None:
    entries = entries_of(file)
    entries[entry] = entries[entry].copy()
    entries[entry].reshape(-1)[0] += change
    save(tmp_path / f"{file}.npz", entries)
    code, lines = run(tmp_path, capsys)
    assert code == 1
    assert lines[0].startswith(f"mismatch               {file}:")
    assert entry.removeprefix("out.") in lines[0] and "largest difference" in lines[0]


def test_files_that_cannot_be_replayed_are_reported_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = entries_of("teach_plain")
    (tmp_path / "teach_broken.npz").write_bytes((DATA / "teach_plain.npz").read_bytes()[:300])
    save(tmp_path / "teach_bare.npz", {k: v for k, v in whole.items() if k != "w.lm_head.weight"})
    save(tmp_path / "teach_short.npz", {k: v for k, v in whole.items() if k != "out.n_active"})
    save(tmp_path / "teach_more.npz", {**whole, "out.extra": np.zeros(2)})
    save(tmp_path / "teach_odd.npz", {**whole, "weights": np.zeros(2)})
    save(tmp_path / "teach_no_config.npz", {k: v for k, v in whole.items() if k != "config"})
    save(tmp_path / "teach_shape.npz", {**whole, "out.teach_signal": whole["out.teach_signal"][:, 1:]})
    save(tmp_path / "unheard_of.npz", whole)
    shutil.copy(DATA / "teach_next.npz", tmp_path)
    code, lines = run(tmp_path, capsys)
    assert code == 1
    told = {line.split()[1].rstrip(":"): line for line in lines[:-1]}
    assert "cannot be replayed" in told["teach_broken"]
    assert "the file has no w.lm_head.weight" in told["teach_bare"]
    assert "n_active: the file does not have it" in told["teach_short"]
    assert "never compared: extra" in told["teach_more"]
    assert "unknown entry 'weights'" in told["teach_odd"]
    assert "the file has no config.ignore_index" in told["teach_no_config"]
    assert "teach_signal: shape (2, 7, 5), recorded (2, 6, 5)" in told["teach_shape"]
    assert "no replay for this kind of file" in told["unheard_of"]
    assert told["teach_next"].startswith("match")
    assert lines[-1] == "9 files: 1 match, 0 deliberate difference, 8 mismatch"


def test_bad_folder_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main([str(tmp_path)]) == 2
    assert "holds no .npz files" in capsys.readouterr().err
    assert golden.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_an_unknown_inner_optimizer_is_a_difference(tmp_path: Path) -> None:
    entries = entries_of("cms_update_momentum")
    entries["config"] = np.array(str(entries["config"]).replace('"momentum"', '"adam"'))
    save(tmp_path / "cms_update_adam.npz", entries)
    report = golden.check(tmp_path / "cms_update_adam.npz")
    assert report.verdict == golden.DIFFERENCE and "[unknown_optimizer]" in report.line()


def test_lower_precision_has_its_own_tolerance(tmp_path: Path) -> None:
    entries = entries_of("teach_plain")
    rounded = entries["out.teach_signal"].astype(np.float32)
    save(tmp_path / "teach_float32.npz", {**entries, "out.teach_signal": rounded})
    g = golden.check(tmp_path / "teach_float32.npz").golden
    assert g is not None and not g.failures
    assert g.rounded is not None and 0 < g.rounded < FLOAT32_TOLERANCE
    rounded = rounded * np.float32(1 + 1e-5)
    save(tmp_path / "teach_float32.npz", {**entries, "out.teach_signal": rounded})
    assert golden.check(tmp_path / "teach_float32.npz").verdict == golden.MISMATCH


def test_a_difference_must_be_in_the_table() -> None:
    with pytest.raises(ValueError, match="'because' is not in"):
        load_golden(DATA / "teach_plain.npz").leave_out("n_active", "because")


@pytest.mark.parametrize("variant", ["momentum", "preconditioned"])
def test_cms_write_of_the_fast_weights(variant: str) -> None:
    """`Cms.write`, fed the doubled signal; LayerNorm, which is slow, takes its recorded deltas."""
    g = kept(f"cms_update_{variant}")
    spec = Level(4, g.config["optimizer"]["lr"], variant)
    params = jax.tree.map(jnp.asarray, convert.level(g.weights))
    cms = Cms(
        {"level": spec},
        *params["w_up"].shape,
        WriteRules(4, MemoryOptions(write_clip=0.0, delta_clip=0.0)),
        own_output=False,
    )
    fast = cms.init({"level": params})

    @jax.jit
    def write(level: Any, fast: Any, x: Any, signal: WriteSignal) -> Any:
        params = {"level": level}
        _, trace = cms.read(params, fast, x, {})
        return cms.write(params, cms.norms(params), fast, trace, signal, position=jnp.int32(0), reduce=own)

    for i in range(g.config["n_updates"]):
        teach = 2.0 * jnp.asarray(g.inputs[f"teach.{i}"][0])
        everywhere = jnp.ones(len(teach), bool)
        signal = WriteSignal(teach, {}, jnp.ones(len(teach)), everywhere, everywhere)
        fast, stats = write(params, fast, jnp.asarray(g.inputs[f"x.{i}"][0]), signal)
        assert isinstance(fast["level"], LevelState)
        step = f"sum.step.{i}"
        written = convert.torch_level(fast["level"].delta)
        for name, delta in written.items():
            g.compare(f"{step}.delta.{name}", delta)
        norms = sum(np.linalg.norm(g.outputs[f"{step}.grad.{name}"]) for name in written)
        assert float(stats["level"].grad_norm) == pytest.approx(norms, rel=1e-6)
        recorded = convert.level(g.under(f"{step}.delta"))
        norm = {name: convert.level(g.weights)[name] + recorded[name] for name in ("ln_scale", "ln_bias")}
        params = {**params, **norm}
    assert not g.failures and g.compared == 4 * g.config["n_updates"]
