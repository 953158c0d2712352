"""Segments: equal bytes, the seed's passage, nothing that training has seen."""

from pathlib import Path

import numpy as np
import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.evals.tasks.segments import blocks, load_segments
from tests.checkpoints import small_config

CONFIG = small_config()


def folder(path: Path, **texts: str) -> str:
    for name, text in texts.items():
        (path / f"{name}.txt").write_text(text)
    return str(path)


def new_text(words: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("bcdfgaeiou"), 6)) for _ in range(words))


def test_segments_are_equal_bytes_and_follow_the_seed(tmp_path: Path) -> None:
    source = folder(tmp_path, one=new_text(400), two=new_text(3000, 1), drei="äöü " * 500)
    options = {"segments": source, "segment_bytes": 1000}
    found = load_segments(options, CONFIG, 0)
    assert [s.name for s in found] == ["drei", "one", "two"] and all(s.checked for s in found)
    assert all(990 <= len(s.text.encode()) <= 1000 for s in found)
    assert found == load_segments(options, CONFIG, 0) != load_segments(options, CONFIG, 1)
    chosen = load_segments({**options, "segment_names": ["two", "one"]}, CONFIG, 0)
    assert [s.name for s in chosen] == ["two", "one"]
    # The shortest text bounds all.
    sizes = {
        len(s.text) for s in load_segments({"segments": source, "segment_names": ["one", "two"]}, CONFIG, 0)
    }
    assert sizes == {len(new_text(400))}


def test_passages_that_were_trained_on_are_passed_over(tmp_path: Path) -> None:
    train = split_documents(load_documents(EMBEDDED))[0]
    seen = train[3].text[:4000].replace(" ", "\n")
    source = folder(tmp_path, mixed=seen[:2000] + new_text(400)[:2000] + seen[2000:])
    for seed in range(6):
        (segment,) = load_segments({"segments": source, "segment_bytes": 2000}, CONFIG, seed)
        assert segment.text == new_text(400)[:2000]
    source = folder(tmp_path, mixed=seen)
    with pytest.raises(DataError, match="no passage of 2000 bytes of mixed"):
        load_segments({"segments": source, "segment_bytes": 2000}, CONFIG, 0)
    other = small_config(data={"source": "elsewhere"})
    assert not load_segments({"segments": source, "segment_bytes": 2000}, other, 0)[0].checked


def test_the_default_is_the_held_out_part_of_the_embedded_corpus() -> None:
    held = "\n".join(d.text for d in split_documents(load_documents(EMBEDDED))[1])
    found = load_segments({"segment_bytes": 4096}, CONFIG, 0)
    assert [s.name for s in found] == ["austen", "kjv", "sotu"]
    assert all(line in held for s in found for line in s.text.splitlines())


def test_blocks_follow_one_another_without_the_rest() -> None:
    assert [b.tolist() for b in blocks(np.arange(8), 3)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"segments": "absent"}, ConfigError, "no such file or folder; name a text file or a folder"),
        ({"segment_names": ["kjv", "bible"]}, ConfigError, "no segment 'bible' in embedded; it has austen"),
        ({"segment_names": ["kjv", "kjv"]}, ConfigError, "want each once"),
        ({"segment_bytes": 10}, ConfigError, "segment_bytes=10: want a whole number of at least 256"),
        ({"segment_bytes": True}, ConfigError, "segment_bytes=True"),
    ],
)
def test_bad_options(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_segments(options, CONFIG, 0)
