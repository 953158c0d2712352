"""Saved memories: what is loaded is what was saved, and nothing else is accepted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from hope_jax.core.errors import MemoryFileError
from hope_jax.learning.stream import Stream, Streamer
from hope_jax.storage import arrays, memory_file
from hope_jax.storage.memory_file import load_memory, owner_of, save_memory
from tests.streams import CAPACITY, CHUNK, assert_same, part, rows, run, setup, variants


def filled(streamer: Streamer, params: Any, batch_size: int = 2) -> Stream:
    """A stream of CHUNK + 3 tokens whose arrays hold arbitrary values: nothing needs to be compiled."""
    rng = np.random.default_rng(0)

    def fill(leaf: np.ndarray) -> np.ndarray:
        values = rng.normal(size=leaf.shape) * 3
        return values.astype(leaf.dtype) if leaf.dtype != bool else values > 0

    state = jax.tree.map(fill, streamer.begin(params, batch_size, CHUNK))
    chunk = state.chunk._replace(start=np.int32(CHUNK), filled=np.int32(3))
    return state._replace(chunk=chunk)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Streamer, Any, Stream]:
    streamer, params = setup("hope_attention")
    path, state = tmp_path / "a.memory", filled(streamer, params)
    save_memory(path, streamer, state, owner_of(streamer, params))
    return path, streamer, params, state


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any]) -> None:
    """The file after `change(header, arrays)`."""
    header, contents = arrays.load(path)
    change(header, contents)
    path.write_bytes(arrays.dump(contents, header))


def refusal(path: Path, streamer: Streamer, params: Any) -> str:
    with pytest.raises(MemoryFileError) as caught:
        load_memory(path, streamer, params, owner_of(streamer, params))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("scope", "dtype"), [("example", "bfloat16"), ("batch", "float64")])
@pytest.mark.parametrize("variant", variants("hope_attention"))
def test_round_trip_is_exact(variant: str, scope: str, dtype: str, tmp_path: Path) -> None:
    streamer, params = setup(variant, scope=scope, dtype=dtype)
    state, owner = filled(streamer, params), owner_of(streamer, params)
    digest = save_memory(tmp_path / "a", streamer, state, owner)
    loaded = load_memory(tmp_path / "a", streamer, params, owner)
    assert_same(loaded, state, 0, 0)
    assert digest == memory_file.digest(tmp_path / "a") == arrays.digest(arrays.named(state))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in loaded.chunk)
    assert save_memory(tmp_path / "b", streamer, loaded, owner) == digest
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    if variant == "transformer" and dtype == "bfloat16":
        assert loaded.carry.cache[0]["attn"].key.dtype == dtype


@pytest.mark.parametrize("variant", variants("hope_attention"))
@pytest.mark.parametrize("cut", [1, CHUNK, CHUNK + 3])
def test_saved_and_continued_is_one_go(variant: str, cut: int, tmp_path: Path) -> None:
    """To the last bit: the same compiled pieces read the same arrays."""
    streamer, params = setup(variant)
    data, owner = rows(), owner_of(streamer, params)
    tokens = data["tokens"].shape[1]
    logits, state, result = run(streamer, params, data, (cut, tokens - cut))
    first, state_of_cut = streamer.feed(params, streamer.begin(params, 3, CAPACITY), **part(data, 0, cut))
    save_memory(tmp_path / "a", streamer, state_of_cut, owner)
    loaded = streamer.resized(load_memory(tmp_path / "a", streamer, params, owner), CAPACITY)
    second, end = streamer.feed(params, loaded, **part(data, cut, tokens))
    assert_same(np.concatenate([first, second], axis=1), logits, 0)
    assert_same((end, streamer.finish(params, end)), (state, result), 0, 0)


def test_only_the_filled_part_of_the_cache_is_stored(tmp_path: Path) -> None:
    streamer, params = setup("transformer")
    owner, state = owner_of(streamer, params), filled(streamer, params)
    save_memory(tmp_path / "small", streamer, state, owner)
    save_memory(tmp_path / "large", streamer, streamer.resized(state, CAPACITY), owner)
    assert (tmp_path / "small").read_bytes() == (tmp_path / "large").read_bytes()


def test_digest_is_of_names_types_shapes_and_values_in_any_order() -> None:
    a, b = np.arange(6.0), np.zeros((2, 0))
    digest = arrays.digest({"a": a, "b": b})
    assert digest == arrays.digest({"b": b, "a": a[::-1][::-1]})
    others = [
        {"a": a, "c": b},
        {"a": a.astype(np.float32), "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a + 1e-9, "b": b},
        {"a": a, "b": b.T},
        {"a": a},
    ]
    assert len({digest, *map(arrays.digest, others)}) == len(others) + 1


def test_restore_names_what_differs() -> None:
    like = {"x": np.zeros((2, 3)), "y": (np.zeros(1, np.int32),)}
    good = arrays.named(like)
    assert list(good) == ["x", "y.0"]
    assert jax.tree.structure(arrays.restore(like, good)) == jax.tree.structure(like)
    for bad, message in [
        ({"x": good["x"]}, r"y\.0: want int32\[1\], got nothing"),
        ({**good, "z": np.zeros(2)}, r"z: want nothing, got float64\[2\]"),
        ({**good, "x": np.zeros((3, 2))}, r"x: want float64\[2, 3\], got float64\[3, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            arrays.restore(like, bad)


def test_missing_and_foreign_files_are_named(saved: Any, tmp_path: Path) -> None:
    _, streamer, params, _ = saved
    assert "cannot be read (No such file" in refusal(tmp_path / "absent", streamer, params)
    assert "cannot be read (Is a directory" in refusal(tmp_path, streamer, params)
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("a text")
    assert "is no memory file, or" in refusal(text, streamer, params)
    text.write_bytes(b"")
    assert "is no memory file, or" in refusal(text, streamer, params)
    for header in ({}, {"format": "hope_jax weights", "version": 2}):
        other.write_bytes(arrays.dump({"x": np.zeros(3)}, header))
        message = refusal(other, streamer, params)
        assert "is another file, no memory file; name one that --save_memory wrote" in message


def test_a_file_cut_short_anywhere_is_refused(saved: Any) -> None:
    path, streamer, params, _ = saved
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40, dtype=int):
        path.write_bytes(whole[:length])
        assert "damaged or cut short" in refusal(path, streamer, params)


def test_a_flipped_bit_is_refused_or_changes_nothing(saved: Any) -> None:
    path, streamer, params, state = saved
    whole, owner, refused = path.read_bytes(), owner_of(streamer, params), 0
    for at in np.random.default_rng(0).integers(0, len(whole), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            assert_same(load_memory(path, streamer, params, owner), state, 0, 0)
        except MemoryFileError:
            refused += 1
    assert refused > 100


def test_changed_arrays_and_headers_do_not_match_their_hashes(saved: Any) -> None:
    path, streamer, params, _ = saved
    whole = path.read_bytes()
    rewrite(path, lambda _, contents: contents.update({"sums.loss": contents["sums.loss"] + 1}))
    assert "its arrays have digest" in refusal(path, streamer, params)
    path.write_bytes(whole)
    rewrite(path, lambda header, _: header.update(start=0))
    assert "its header was changed" in refusal(path, streamer, params)


def test_another_format_version_names_the_package_that_wrote_it(saved: Any) -> None:
    path, streamer, params, _ = saved
    rewrite(path, lambda header, _: header.update(version=9))
    message = refusal(path, streamer, params)
    assert "of format 9 and this package reads 3; use hope_jax " in message


@pytest.mark.parametrize("entry", ["null", "[]", "[" * 100_000, "{", "3"])
def test_headers_that_are_no_objects_are_refused(entry: str, saved: Any) -> None:
    path, streamer, params, _ = saved
    save_file({"x": np.zeros(3)}, path, metadata={"hope_jax": entry})
    assert "damaged or cut short" in refusal(path, streamer, params)


def test_memories_of_other_models_are_refused_with_both_digests(saved: Any) -> None:
    path, streamer, params, _ = saved
    remedy = "give the --checkpoint that wrote it, or start without it and read the text again"
    other = jax.tree.map(lambda leaf: leaf + 1e-12, params)
    mine, theirs = owner_of(streamer, params), owner_of(streamer, other)
    message = refusal(path, streamer, other)
    assert f"of other parameters (digest {mine.params}, here {theirs.params}); {remedy}" in message

    wider = Streamer(type(streamer.model)(replace(streamer.model.spec, sliding_window=4)), streamer.rule)
    theirs = owner_of(wider, params)
    message = refusal(path, wider, params)
    assert f"of another architecture (digest {mine.spec}, here {theirs.spec}); {remedy}" in message

    longer = Streamer(streamer.model, streamer.rule._replace(chunk_size=16))
    message = refusal(path, longer, params)
    assert f"is one of {CHUNK} tokens, and this model streams in chunks of 16; {remedy}" in message


def test_arrays_that_do_not_fit_are_named(saved: Any, tmp_path: Path) -> None:
    path, streamer, params, state = saved
    odd = state._replace(sums=state.sums._replace(loss=np.zeros(2)))
    save_memory(path, streamer, odd, owner_of(streamer, params))
    assert "does not fit this model: sums.loss: want float64[], got float64[2]" in refusal(
        path, streamer, params
    )


def test_a_new_option_at_its_default_keeps_the_digest() -> None:
    from typing import NamedTuple

    class Old(NamedTuple):
        a: int
        b: float = 1.0

    class New(NamedTuple):
        a: int
        b: float = 1.0
        c: str = "x"

    described = memory_file._described
    assert described(Old(1)) == described(New(1)) != described(New(1, c="y"))
    assert described((Old(2), np.dtype("float32"))) == [{"a": 2}, "float32"]


def test_a_failed_write_leaves_the_old_file(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, streamer, params, state = saved
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(MemoryFileError, match="cannot be written .*No space left on device"):
        save_memory(path, streamer, state, owner_of(streamer, params))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_header_says_what_it_holds(saved: Any) -> None:
    path, _, _, state = saved
    header, contents = arrays.load(path)
    assert (header["position"], header["start"], header["batch_size"]) == (CHUNK + 3, CHUNK, 2)
    assert contents["chunk.target_mask"].dtype == bool
    assert contents["chunk.target_mask"].shape == (2, CHUNK)
    assert set(contents) == set(arrays.named(state))
