"""Tokenizer: exact round trips, fixed ids, readable errors."""

import hashlib
import io
from importlib import resources

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from hope_jax.config.experiment import DataConfig
from hope_jax.core.errors import DataError
from hope_jax.data.corpus import load_documents
from hope_jax.data.tokenizer import Tokenizer, open_tokenizer

TOKENIZER = Tokenizer.load("embedded")


@given(st.text(max_size=200))
@example("a\n\n b  c \n")
@example("\u2581a \u2581\u2581 b\u2581")  # the character that sentencepiece uses for a space
@example("\0\r\n\t<s></s><unk><0x0A>\ufeff\u2028\ufffd")
@example("日本語 🎉 e\u0301")
def test_any_unicode_text_survives_encode_and_decode(text):
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert TOKENIZER.decode(ids) == text


def test_the_whole_corpus_survives_encode_and_decode():
    for document in load_documents("embedded"):
        assert TOKENIZER.decode(TOKENIZER.encode(document.text)) == document.text


def test_ids_and_size_are_the_shipped_models():
    t = TOKENIZER
    assert (t.pad_id, t.bos_id, t.eos_id, t.vocab_size) == (0, 1, 2, 1024)
    raw = (resources.files("hope_jax.data") / "assets" / "unigram_1024.model").read_bytes()
    assert t.sha256 == hashlib.sha256(raw).hexdigest()


def test_text_never_yields_special_ids():
    ids = TOKENIZER.encode("<s> </s> <pad> <unk> and more")
    assert not set(ids.tolist()) & {0, 1, 2, 3}


def test_special_ids_decode_to_nothing_and_foreign_ids_to_the_replacement_character():
    t = TOKENIZER
    ids = [t.bos_id, *t.encode("Lord"), t.eos_id]
    assert t.decode(ids) == "Lord"
    assert t.decode(np.array([*ids, 31999, *ids])) == "Lord\ufffdLord"
    assert t.decode([]) == ""


@given(st.text(max_size=40), st.data())
@example("a \u2581 é 日本", None)
def test_text_comes_piece_by_piece(text, data):
    ids = TOKENIZER.encode(text).tolist()
    assert "".join(TOKENIZER.decode_stream([], ids)) == text
    cut = data.draw(st.integers(0, len(ids))) if data else len(ids) // 2
    before = TOKENIZER.decode(ids[:cut])
    after = "".join(TOKENIZER.decode_stream(ids[:cut], ids[cut:]))
    # A character that the cut divides comes whole with its last token.
    assert before.rstrip("\ufffd") + after.lstrip("\ufffd") == text or before + after == text


def test_pieces_come_as_soon_as_they_are_whole():
    t = TOKENIZER
    pieces = list(t.decode_stream(t.encode("the"), [*t.encode(" Lord"), t.bos_id, *t.encode(" é"), 31999]))
    assert "".join(pieces) == " Lord é\ufffd" and pieces[-1] == "\ufffd"
    assert pieces[0].startswith(" ")
    assert not list(t.decode_stream(t.encode("the"), []))[0]


def test_a_model_file_loads_like_the_embedded_one(tmp_path):
    raw = (resources.files("hope_jax.data") / "assets" / "unigram_1024.model").read_bytes()
    (tmp_path / "copy.model").write_bytes(raw)
    copy = Tokenizer.load(str(tmp_path / "copy.model"))
    assert copy.sha256 == TOKENIZER.sha256
    np.testing.assert_array_equal(copy.encode("the earth"), TOKENIZER.encode("the earth"))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64])
def test_a_corrupt_model_is_one_readable_error(tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.model.*not a sentencepiece model.*embedded"):
        Tokenizer.load(str(path))


def test_a_missing_model_and_a_folder_are_readable_errors(tmp_path):
    with pytest.raises(DataError, match="none.model.*No such file.*embedded"):
        Tokenizer.load(str(tmp_path / "none.model"))
    with pytest.raises(DataError, match="data.tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_the_key_names_another_model(tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes((resources.files("hope_jax.data") / "assets" / "unigram_1024.model").read_bytes())
    assert open_tokenizer(DataConfig(tokenizer=str(path))).sha256 == TOKENIZER.sha256
    path.unlink()
    with pytest.raises(DataError, match=r"mine\.model"):
        open_tokenizer(DataConfig(tokenizer=str(path)))


def test_a_lone_surrogate_is_refused_by_name():
    with pytest.raises(DataError, match="character 1 .*surrogate"):
        TOKENIZER.encode("a\ud800")


def other_model(**settings):
    """A small model as others train them, with a space before each text; kept in bytes, to be loaded."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the king said to the people", "a house of stone was there"] * 20),
        model_writer=out, vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, **settings,
    )  # fmt: skip
    return Tokenizer(out.getvalue(), "other")


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "text", ["a\u2581b", "\u2581", "\u2581the", " a \u2581 b", "\u2581\ue000\u2581日", "a  b "]
)
def test_other_models_with_a_space_before_a_text_keep_the_space_mark(kind, text):
    tokenizer = other_model(model_type=kind, **PLAIN)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "".join(tokenizer.decode_stream([], tokenizer.encode(text).tolist())) == text


@pytest.mark.parametrize("text", ["the \u2581 king", "a\u2581b", "the king \u2581"])
def test_a_model_that_removes_spaces_removes_none_beside_the_space_mark(text):
    tokenizer = other_model()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_beyond_the_vocabulary_take_no_space_away():
    tokenizer = other_model(**PLAIN)
    ids = [*tokenizer.encode("the"), 99_999, *tokenizer.encode("king")]
    assert tokenizer.decode(ids) == "the\ufffd king"
    assert "".join(tokenizer.decode_stream([], ids)) == "the\ufffd king"
    assert tokenizer.decode([99_999, *ids]) == "\ufffd the\ufffd king"
