"""A checkpoint as a model that streams, and the documents of the texts that it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hope_jax.core.errors import CheckpointError
from hope_jax.storage import arrays
from hope_jax.storage.stored import LoadedCheckpoint, load_checkpoint
from hope_jax.storage.trained import Trained, prepare, read_text
from tests.checkpoints import save_small, small_config

PERSISTENT = {
    "memory": {"lifetime": "persistent", "scope": "batch"},
    "train": {"steps": 2, "algorithm_mode": "two_pass"},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    return load_checkpoint(save_small(tmp_path_factory.mktemp("run"), small_config()), ("params", "fast"))


@pytest.fixture(scope="module")
def model(loaded: LoadedCheckpoint) -> Trained:
    return prepare(loaded, small_config())


def test_parameters_are_the_checkpoints(loaded: LoadedCheckpoint, model: Trained) -> None:
    assert model.fast is None and model.path == loaded.path
    saved, given = arrays.named(loaded.state["params"]), arrays.named(model.params)
    assert saved.keys() == given.keys()
    assert all(np.array_equal(saved[name], given[name]) for name in saved)


def test_persistent_memories_are_the_streams_start(tmp_path: Path) -> None:
    config = small_config(**PERSISTENT)
    loaded = load_checkpoint(save_small(tmp_path, config), ("params", "fast"))
    model = prepare(loaded, config)
    assert model.streamer.rule.chunk_size == config.data.seq_len
    assert arrays.digest(arrays.named(model.fast)) == arrays.digest(arrays.named(loaded.state["fast"]))
    fresh = model.streamer.begin(model.params, 1, 0)
    assert jax.tree.structure(fresh.fast) == jax.tree.structure(model.fast)


def test_another_tokenizer_is_refused(loaded: LoadedCheckpoint) -> None:
    other = loaded._replace(meta={**loaded.meta, "tokenizer_digest": "abc"})
    with pytest.raises(
        CheckpointError, match=r"another tokenizer .digest abc, .*bring back the one it names"
    ):
        prepare(other, small_config())


def test_arrays_that_do_not_fit_the_configuration_are_named(loaded: LoadedCheckpoint) -> None:
    config = small_config()
    wider = replace(config, model=replace(config.model, dim=32))
    with pytest.raises(
        CheckpointError, match=r"params\.blocks.*want float32\[1, 16\], got float32\[1, 8\]; it was written"
    ):
        prepare(loaded, wider)


def tokens_read(model: Trained, *texts: Any) -> tuple[list[int], list[int], list[bool]]:
    """Tokens, documents and mask of the unfinished chunk after texts, or single tokens, are read."""
    stream = model.streamer.begin(model.params, 1, 0)
    for text in texts:
        if isinstance(text, int):
            segment = stream.recent.segment_ids[:, -1:]
            _, stream = model.streamer.feed(model.params, stream, np.array([[text]]), segment_ids=segment)
        else:
            stream = read_text(model, stream, text, targets=True)
    return tuple(row[0].tolist() for row in stream.recent[:3])  # type: ignore[return-value]


def test_texts_are_documents_as_the_pipeline_makes_them(model: Trained) -> None:
    t = model.tokenizer
    one, two = t.encode("one").tolist(), t.encode("two").tolist()
    assert tokens_read(model, "one")[:2] == ([t.bos_id, *one], [1] * (1 + len(one)))
    # A second text goes on in the document; after EOS it is another.
    tokens, documents, mask = tokens_read(model, "one", "two")
    assert tokens == [t.bos_id, *one, *two] and set(documents) == {1} and all(mask)
    tokens, documents, _ = tokens_read(model, "one", t.eos_id, "two")
    assert tokens == [t.bos_id, *one, t.eos_id, t.bos_id, *two]
    assert documents == [1] * (2 + len(one)) + [2] * (1 + len(two))
    assert tokens_read(model, "one", t.eos_id, "")[:2] == (tokens[: -len(two)], documents[: -len(two)])
    assert tokens_read(model, "one", "")[0] == [t.bos_id, *one]


def test_another_document_begins_a_chunk_if_memories_start_afresh(loaded: LoadedCheckpoint) -> None:
    model = prepare(loaded, small_config(memory={"reset_at_document": True}))
    t, size = model.tokenizer, model.streamer.rule.chunk_size
    tokens, documents, _ = tokens_read(model, "one", t.eos_id, "two")
    assert tokens == [t.bos_id, *t.encode("two").tolist()] and set(documents) == {2}
    stream = model.streamer.begin(model.params, 1, 0)
    stream = read_text(model, read_text(model, stream, "one", targets=True), "two", targets=True)
    assert stream.position < size and set(stream.recent.segment_ids[0].tolist()) == {1}


def test_a_text_that_is_no_target_and_room_for_more(model: Trained) -> None:
    stream = read_text(model, model.streamer.begin(model.params, 1, 0), "one", targets=False, more=40)
    assert not stream.recent.target_mask.any()
    assert stream.carry.segments.shape[1] == 64
