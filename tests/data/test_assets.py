"""The shipped corpus and tokenizer are the bytes that PROVENANCE.md names, and can be made again."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASSETS = resources.files("hope_jax.data") / "assets"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "data" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_asset_has_the_hash_that_provenance_states():
    text = (ASSETS / "PROVENANCE.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE))
    stated = {name: digest for digest, name in stated.items()}
    found = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in ASSETS.iterdir()
        if f.name != "PROVENANCE.md"
    }
    assert found == stated


def test_provenance_and_script_agree_on_the_sources():
    text = (ASSETS / "PROVENANCE.md").read_text(encoding="utf-8")
    for name, digest in script("make_embedded_corpus").SOURCE_SHA256.items():
        assert re.search(rf"`{name}` .*{digest}", text)


def test_derivation_refuses_a_source_of_another_hash(tmp_path):
    (tmp_path / "kjv.txt").write_text("In the beginning")
    with pytest.raises(SystemExit, match="sha256"):
        script("make_embedded_corpus").read_source(tmp_path, "kjv.txt")


def test_derivation_cuts_at_chapters_and_joins_wrapped_lines():
    derive = script("make_embedded_corpus")
    novel = (
        "PRIDE AND PREJUDICE\n\nBy\n\nChapter 1\n\n\nIt is\na truth\n\nHowever\n\n"
        "Chapter 2\n\nMr.\n\nSENSE AND SENSIBILITY"
    )
    assert derive.austen_documents(novel) == ["Chapter 1\nIt is a truth\nHowever", "Chapter 2\nMr."]
    verses = [f"verse {i}" for i in range(3000)]
    chapters = derive.kjv_documents("\n".join(verses))
    assert len(chapters) == 90
    assert "\n".join(chapters).split("\n") == verses[:2746]


def test_the_commands_of_provenance_make_the_tokenizer_and_its_reports_again(tmp_path: Path):
    text = (ASSETS / "PROVENANCE.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert len(commands) == 2
    for command in commands:
        subprocess.run(
            [sys.executable, *command.split()[1:]],
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
    made = tmp_path / "made"
    for name in ("unigram_1024.model", "unigram_1024.coverage.json"):
        assert (made / name).read_bytes() == (ASSETS / name).read_bytes(), name
    sidecars = [json.loads((folder / "unigram_1024.json").read_bytes()) for folder in (made, ASSETS)]
    for sidecar in sidecars:
        del sidecar["versions"]
    assert sidecars[0] == sidecars[1]
