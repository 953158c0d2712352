"""Training of tokenizers: the same bytes every time, nothing lost, limits kept, files whole or absent."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hope_jax import cli
from hope_jax.core.errors import DataError, OutputError
from hope_jax.data import corpus, train_tokenizer
from hope_jax.data.corpus import open_sources
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.data.train_tokenizer import cut_lines, train_model
from tests.data import handmade

ROOT = Path(__file__).parents[2]
TEXTS = [d.text[:2500] for d in corpus.load_documents("embedded")[::9]]
LINES = [line for text in TEXTS for line in cut_lines(text)]
MODEL = train_model(LINES, 400)


def train(folder: Path, vocab_size: int = 400, **options: Any) -> tuple[bytes, dict[str, Any]]:
    return train_tokenizer.train_tokenizer(open_sources([str(folder)]), vocab_size=vocab_size, **options)


def pieces(model: bytes) -> set[str]:
    return {line.split("\t")[0] for line in train_tokenizer.vocab_text(model).split("\n")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "texts", {"all.txt": "\n\f\n".join(TEXTS)})


TRAINED = Tokenizer(MODEL, "trained")


@given(st.text(max_size=100))
@settings(max_examples=60)
@example("a\n\n b  c \n\t\r\n")
@example("\u2581a \u2581\u2581 b\u2581 \u2585 \0 <s></s><unk><0x0A>")
@example("日本語 🎉 e\u0301 ﬁ Å")
def test_any_text_survives_a_trained_tokenizer(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert not set(ids.tolist()) & {0, 1, 2, 3}


def test_special_ids_are_those_of_the_embedded_model() -> None:
    embedded = Tokenizer.load()
    for name in ("pad_id", "bos_id", "eos_id", "unk_id"):
        assert getattr(TRAINED, name) == getattr(embedded, name)
    first = "\n" + "".join(map(chr, range(128)))
    byte_ids = [5 + b for b in "é".encode()]
    assert TRAINED.encode("\né").tolist() == embedded.encode("\né").tolist() == [4, *byte_ids]
    assert TRAINED.decode(TRAINED.encode(first)) == first


def test_a_vocabulary_that_the_text_cannot_fill_names_the_size_that_fits() -> None:
    lines = ["the cat sat on the mat", "the dog sat on the log"] * 20
    with pytest.raises(DataError, match=r"--vocab_size=2000: .* want --vocab_size=(\d+) or less") as caught:
        train_model(lines, 2000)
    assert "--hard_vocab_limit=off" in str(caught.value)
    fits = int(str(caught.value).split("want --vocab_size=")[1].split()[0])
    assert Tokenizer(train_model(lines, fits), "t").vocab_size == fits
    with pytest.raises(DataError, match=f"--vocab_size={fits + 1}"):
        train_model(lines, fits + 1)
    assert Tokenizer(train_model(lines, 2000, hard_vocab_limit=False), "t").vocab_size == fits


def test_a_vocabulary_below_the_bytes_and_characters_names_the_least() -> None:
    lines = ["the cat sat on the mat"] * 5
    with pytest.raises(
        DataError, match=r"--vocab_size=100: .*alone are \d+ here; want --vocab_size="
    ) as caught:
        train_model(lines, 100, hard_vocab_limit=False)
    least = int(str(caught.value).split("want --vocab_size=")[1].split()[0])
    with pytest.raises(DataError, match="want --vocab_size="):
        train_model(lines, least - 1)
    assert Tokenizer(train_model(lines, least), "t").vocab_size == least


def test_auto_refuses_a_large_text_that_holds_too_few_pieces_and_takes_a_small_one(tmp_path: Path) -> None:
    lines = ["the cat sat on the mat"] * 4000
    large = handmade.write(tmp_path / "large", {"a.txt": "\n".join(lines)})
    small = handmade.write(tmp_path / "small", {"a.txt": "\n".join(lines[:40])})
    assert 40 * 22 < train_tokenizer.SMALL_SAMPLE * 400 < 4000 * 22
    with pytest.raises(DataError, match="--hard_vocab_limit=off"):
        train(large)
    record = train(small)[1]
    assert record["settings"]["hard_vocab_limit"] is False
    assert 270 < record["vocab_size"] < 400 == record["settings"]["vocab_size"]
    assert train(large, hard_vocab_limit=False)[1]["vocab_size"] == record["vocab_size"]
    with pytest.raises(DataError, match="--hard_vocab_limit=off"):
        train(small, hard_vocab_limit=True)


def test_rare_characters_leave_the_vocabulary_with_a_lower_coverage_and_are_not_lost() -> None:
    lines = [*LINES, "Ω"]
    full, most = train_model(lines, 400), train_model(lines, 400, character_coverage=0.9995)
    assert "Ω" in pieces(full) and "Ω" not in pieces(most)
    assert Tokenizer(most, "t").decode(Tokenizer(most, "t").encode("Ω")) == "Ω"


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    marks = [chr(0x4E00 + i) for i in range(60)]
    texts = [f"text {mark} of its own" for mark in marks]
    handmade.write(tmp_path, {"a.txt": "\n\f\n".join(texts)})
    train_side, held = corpus.split_documents(corpus.load_documents(str(tmp_path)))
    assert len(held) > 1
    model, record = train(tmp_path, character_coverage=1.0)
    known = {mark for mark in marks if mark in pieces(model)}
    assert known == {d.text[5] for d in train_side} and len(known) + len(held) == 60
    assert record["inputs"][0]["held_out"] == len(held)
    assert record["trained_on"]["lines"] == len(train_side)


def test_json_lines_give_the_tokenizer_that_the_same_documents_in_files_give(
    tmp_path: Path, folder: Path
) -> None:
    lines = "".join(json.dumps({"body": text.strip("\r\n")}) + "\n" for text in TEXTS)
    handmade.write(tmp_path, {"a.jsonl": lines})
    sources = open_sources([str(tmp_path / "a.jsonl")], "body")
    model, record = train_tokenizer.train_tokenizer(sources, vocab_size=400)
    assert model == train(folder)[0]
    assert record["inputs"][0]["documents"] == len(TEXTS)


def test_a_sample_is_the_seeds_and_no_larger_than_asked(folder: Path) -> None:
    one, again, other = (train(folder, 350, max_characters=8000, seed=seed) for seed in (1, 1, 2))
    assert one == again and one[0] != other[0]
    for _, record in (one, other):
        assert 4000 < record["trained_on"]["characters"] <= 8000
    assert one[1]["trained_on"]["sha256"] != other[1]["trained_on"]["sha256"]
    assert one[1]["settings"]["max_characters"] == 8000 and other[1]["settings"]["seed"] == 2


def test_long_lines_are_cut_before_spaces_and_whole_again_when_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_tokenizer, "MAX_LINE", 40)
    cut = [piece for text in TEXTS for piece in cut_lines(text)]
    assert max(map(len, cut)) <= 40 and "".join(cut) == "".join(LINES)
    words = [" ".join(lines).split(" ") for lines in (cut, LINES)]
    assert [w for w in words[0] if w] == [w for w in words[1] if w]
    assert list(cut_lines("x" * 90)) == ["x" * 40, "x" * 40, "x" * 10]
    assert list(cut_lines("a\n\n\nb ")) == ["a", "b "]


def test_a_character_that_sentencepiece_keeps_for_itself_does_not_cost_its_line() -> None:
    lines = list(cut_lines("\u2585 zebra zebra \u2585 zebra zebra zebra\n" * 20))
    assert "\u2581zebra" in pieces(train_model(lines, 300, hard_vocab_limit=False))
    with pytest.raises(DataError, match="no text to train on"):
        train_model(list(cut_lines("\u2585\n\u2585")), 300)


def test_text_of_nuls_and_spaces_is_trained_on_or_refused_but_no_crash() -> None:
    for lines in (["a\0b c\0d"] * 9, [" ", "  "], ["a"]):
        tokenizer = Tokenizer(train_model(lines, 300, hard_vocab_limit=False), "t")
        assert [tokenizer.decode(tokenizer.encode(line)) for line in lines] == lines
    with pytest.raises(DataError, match="no text to train on"):
        train_model([], 300)


def run(
    arguments: Sequence[object], cwd: Path, seed: str = "0", module: str = "hope_jax.data.train_tokenizer"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_writes_the_same_three_files_wherever_it_runs(tmp_path: Path, folder: Path) -> None:
    made = []
    for name, text, seed in (("one", folder, "1"), ("two", Path("../texts"), "2")):
        (tmp_path / name).mkdir()
        done = run([f"--input={text}", "--vocab_size=400", "--out=made/tok"], tmp_path / name, seed)
        assert done.returncode == 0, done.stderr
        made.append({p.name: p.read_bytes() for p in (tmp_path / name / "made").iterdir()})
    assert made[0] == made[1] and set(made[0]) == {"tok.model", "tok.vocab", "tok.json"}
    record = json.loads(made[0]["tok.json"])
    digest = hashlib.sha256(made[0]["tok.model"]).hexdigest()
    assert record["sha256"] == digest and f"{digest}  made/tok.model" in done.stdout
    assert "vocabulary: 400 of 400 pieces\n" in done.stdout
    assert record["special_ids"] == {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "newline_id": 4}
    entry = record["inputs"][0]
    assert (entry["name"], entry["documents"]) == ("texts", len(TEXTS)) and entry["held_out"] >= 1
    assert set(record["versions"]) == {"hope_jax", "sentencepiece"}
    lines = made[0]["tok.vocab"].decode().split("\n")
    assert len(lines) == 401 and lines[0] == "<pad>\t0" and lines[4] == "\\n\t0"
    assert Tokenizer.load(str(tmp_path / "one/made/tok.model")).sha256 == digest


def test_the_commands_of_the_documentation_run(tmp_path: Path, folder: Path) -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"^python -m (hope_jax\.data\.(?:train_tokenizer|coverage)) (.*)$", text, re.MULTILINE
    )
    assert len(commands) == 4
    for module, arguments in commands:
        done = run(arguments.split(), tmp_path, module=module)
        assert done.returncode == 0, done.stderr
    assert "guard passed" in done.stdout
    names = {"mine.model", "mine.vocab", "mine.json", "mine.coverage.json"}
    assert {p.name for p in (tmp_path / "made").iterdir()} == names


def test_a_vocabulary_that_came_out_smaller_is_said(tmp_path: Path) -> None:
    handmade.write(tmp_path, {"a.txt": "the cat sat on the mat\n" * 9})
    done = run(["--input=a.txt", "--out=small.model"], tmp_path)
    assert done.returncode == 0, done.stderr
    size = json.loads((tmp_path / "small.json").read_text())["vocab_size"]
    assert f"vocabulary: {size} of 32000 pieces (the text holds no more)" in done.stdout
    refused = run(["--input=a.txt", "--out=other", "--hard_vocab_limit=on"], tmp_path)
    assert refused.returncode == 1 and f"want --vocab_size={size} or less" in refused.stderr
    assert not list(tmp_path.glob("other*"))


def test_a_digest_that_is_asked_for_and_does_not_come_out_leaves_nothing(tmp_path: Path) -> None:
    handmade.write(tmp_path, {"a.txt": "the cat sat on the mat\n" * 9})
    done = run(["--input=a.txt", "--out=tok", f"--sha256={'0' * 64}"], tmp_path)
    assert done.returncode == 1 and "nothing was written" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    handmade.write(tmp_path, {"tok.model": MODEL, "tok.json": json.dumps(sidecar_of(MODEL))})
    return tmp_path / "tok.model"


def sidecar_of(model: bytes) -> dict[str, str]:
    return {"kind": "hope_jax.tokenizer", "sha256": hashlib.sha256(model).hexdigest()}


def test_check_tells_a_good_model_from_a_damaged_one(made: Path) -> None:
    digest = sidecar_of(MODEL)["sha256"]
    good = run([f"--check={made}"], made.parent)
    assert (good.returncode, good.stdout) == (0, f"{digest}  {made}\n")
    both = run(["--check=tok.model", f"--sha256={digest.upper()}"], made.parent)
    assert both.returncode == 0
    other = run(["--check=tok.model", f"--sha256={'0' * 64}"], made.parent)
    assert other.returncode == 1 and f"is {digest}, but --sha256 says {'0' * 64}" in other.stderr
    damaged = MODEL[:-9] + bytes([MODEL[-9] ^ 1]) + MODEL[-8:]
    made.write_bytes(damaged)
    found = hashlib.sha256(damaged).hexdigest()
    bad = run(["--check=tok.model"], made.parent)
    assert bad.returncode == 1 and len(bad.stderr.splitlines()) == 1
    assert f"tok.model: its sha256 is {found}, but tok.json says {digest}" in bad.stderr
    with pytest.raises(DataError, match=rf"tok\.model.*is {found}, but \S+tok\.json says {digest}"):
        Tokenizer.load(str(made))


def test_check_needs_something_to_check_against(made: Path) -> None:
    made.with_suffix(".json").unlink()
    bare = run(["--check=tok.model"], made.parent)
    assert bare.returncode == 2 and "there is no tok.json" in bare.stderr and "--sha256=HEX" in bare.stderr
    assert run(["--check=tok.model", f"--sha256={sidecar_of(MODEL)['sha256']}"], made.parent).returncode == 0
    assert run(["--check=embedded"], made.parent).returncode == 0
    for digest in ("", "zz"):
        bad = run(["--check=tok.model", f"--sha256={digest}"], made.parent)
        assert bad.returncode == 2 and f"--sha256={digest!r}: want 64 hex digits" in bad.stderr
    assert run(["--check=none.model"], made.parent).returncode == 1


@pytest.mark.parametrize("content", ['{"version": "1.0", "model": {"type": "Unigram"}}', "[]"])
def test_a_json_file_of_another_library_is_no_sidecar(made: Path, content: str) -> None:
    made.with_suffix(".json").write_text(content)
    assert Tokenizer.load(str(made)).model == MODEL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ('{"kind": "hope_jax.tok', "cannot be read"),
        ('{"kind": "hope_jax.tokenizer"}', "no sha256"),
    ],
)
def test_a_damaged_sidecar_is_not_taken_for_none(made: Path, content: str, message: str) -> None:
    made.with_suffix(".json").write_text(content)
    with pytest.raises(DataError, match=rf"tok\.json: .*{message}"):
        Tokenizer.load(str(made))


def test_files_take_their_places_together_the_named_one_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []
    replace_file = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (places.append(Path(b).name), replace_file(a, b)))
    files = {tmp_path / name: b"new" for name in ("t.json", "t.vocab", "t.model")}
    cli.write_files("out", files)
    assert places == ["t.model", "t.vocab", "t.json"]

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="--out: .*cannot be written .No space left on device."):
        cli.write_files("out", dict.fromkeys(files, b"newer"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: b"new" for p in files}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input=none", "--out=a.txt/tok"], 2, "a.txt is no folder that can be written to"),
        (["--input=none", "--out=."], 2, "want DIR/NAME"),
        (["--input=none", "--out=new/tok"], 1, "--input=none: no such file or folder"),
        (["--input=a.txt"], 2, "--out is missing"),
        (["--out=tok"], 1, "--input is missing"),
        (["--input=blank.txt", "--out=tok"], 1, "blank.txt holds no text"),
        (["--input=latin.txt", "--out=tok"], 1, "latin.txt is not UTF-8"),
        (["--input=a.txt", "--out=tok", "--vocab_size=0"], 2, "vocab_size"),
        (["--input=a.txt", "--out=tok", "--vocab_size=20"], 1, "want --vocab_size=26"),
        (["--input=a.txt", "--check=tok.model"], 2, "--check takes neither"),
        (["a.txt"], 2, "unexpected argument 'a.txt'"),
    ],
)
def test_bad_usage_is_one_paragraph_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    files = {"a.txt": "the cat sat", "blank.txt": " \n", "latin.txt": b"\xe9"}
    handmade.write(tmp_path, files)
    done = run(arguments, tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} == set(files)
