"""Perplexity: what a token costs, by position, with and without writes, and after memorization."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals import statistics
from hope_jax.evals.reading import scoring
from hope_jax.evals.reading.memorize import Memorizer, Rule
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.suite import comparison
from hope_jax.evals.suite.run import ARMS, Run
from hope_jax.evals.tasks import perplexity
from hope_jax.evals.tasks.perplexity import estimates, load_pieces, losses_of, over_positions
from tests.evals.subjects import as_if_slow, subject

TOKENIZER = Tokenizer.load()
RNG = np.random.default_rng(0)


def test_positions_are_as_computed_token_by_token() -> None:
    lengths = (700, 130, 5)
    texts = [(RNG.random(n), RNG.integers(1, 6, n), RNG.integers(0, 2, n)) for n in lengths]
    losses = [losses_of(*text) for text in texts]
    found = over_positions(losses)
    assert list(found) == [(0, 16), *((16 << i, 32 << i) for i in range(6))]
    for (low, high), estimate in found.items():
        wanted = np.concatenate([nats[low:high] for nats, _, _ in texts])
        assert estimate.value == pytest.approx(wanted.mean(), rel=1e-12)
    nats, byte_counts, words = (np.concatenate(column) for column in zip(*texts, strict=True))
    whole = estimates(losses)
    assert whole["nats_per_token"].value == pytest.approx(nats.mean())
    assert whole["nats_per_byte"].value == pytest.approx(nats.sum() / byte_counts.sum())
    assert whole["nats_per_word"].value == pytest.approx(nats.sum() / words.sum())
    assert whole["perplexity"].value == pytest.approx(np.exp(nats.mean()))
    assert [int(text["tokens"].sum()) for text in losses] == list(lengths)
    assert [estimate.n for estimate in found.values()] == [3, 2, 2, 2, 2, 1, 1]


def test_the_interval_of_a_ratio() -> None:
    """Of equal units it is Student's; of unequal ones it holds the truth about as often as it says."""
    values = RNG.normal(3, 1, 40)
    assert statistics.ratio(values, np.ones(40)) == pytest.approx(statistics.mean(values))
    hits = 0
    for _ in range(500):
        units = RNG.integers(1, 9, 30).astype(float)
        estimate = statistics.ratio(2 * units + np.sqrt(units) * RNG.normal(size=30), units)
        hits += estimate.low < 2 < estimate.high
    assert 0.91 < hits / 500 < 0.98
    assert np.isnan(statistics.ratio(np.ones(1), np.ones(1)).low)


@pytest.mark.parametrize("text", ["Two words", " a  b\n\nc ", "naïve café — ▁x", "日本", "one\ttwo "])
def test_bytes_and_words_of_tokens_are_those_of_the_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (piece,), _ = load_pieces(TOKENIZER, str(tmp_path), 1000)
    assert piece.bytes.sum() == len(text.encode()) and piece.words.sum() == len(text.split())
    assert (piece.bytes >= 0).all() and len(piece.tokens) == len(piece.bytes) == len(piece.words)
    if text.isascii():
        assert piece.bytes.tolist() == [len(TOKENIZER.decode([t])) for t in piece.tokens]


def test_pieces_of_the_embedded_corpus_and_of_a_folder(tmp_path: Path) -> None:
    pieces, digest = load_pieces(TOKENIZER, None, 4096)
    assert {piece.source for piece in pieces} == {"austen", "kjv", "sotu"}
    assert [piece.key for piece in pieces[:4]] == ["austen/0", "kjv/0", "sotu/0", "austen/1"]
    assert all(2048 <= len(piece.tokens) <= 4096 for piece in pieces)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("one two three four five six seven\n\f\nx")
    (tmp_path / "a.txt").write_text("eight nine ten")
    pieces, other = load_pieces(TOKENIZER, str(tmp_path), 4)
    assert other != digest and all(len(piece.tokens) > 1 for piece in pieces)
    keys = [piece.key for piece in pieces]
    assert keys[:2] == ["a.0/0", "b.c.0/0"] and "b.c.1/0" not in keys
    first, second = pieces[0].halves()
    np.testing.assert_array_equal(np.concatenate([first.tokens, second.tokens]), pieces[0].tokens)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three pieces of 96 tokens, one of each source, in all arms."""
    run = Run(
        subject(), tmp_path_factory.mktemp("out"), limit=3, arms=ARMS, records=True,
        options={"perplexity_tokens": 96},
    )  # fmt: skip
    return perplexity.evaluate(run)


def losses_in(found: dict[str, Any], arm: str) -> list[float]:
    return [item["nats_per_token"] for item in found["items"] if item["arm"] == arm]


def pieces() -> list[Any]:
    return load_pieces(TOKENIZER, None, 96)[0][:3]


@pytest.mark.nightly
def test_whole_pieces_cost_what_their_tokens_do_in_segments_of_any_size(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nats = [-n for n in token_log_probs(subject(), [piece.tokens for piece in pieces()])]
    monkeypatch.setattr(scoring, "segment_tokens", lambda *_: 32)
    for own, other in zip(nats, token_log_probs(subject(), [p.tokens for p in pieces()]), strict=True):
        np.testing.assert_allclose(own, -other, atol=1e-5)
    np.testing.assert_allclose(losses_in(found, "writes_on"), [n.mean() for n in nats], rtol=1e-5)
    for low, high in ((0, 16), (16, 32), (32, 64), (64, 128)):
        metric = found["metrics"][f"position_{low}_{high}/nats_per_token/writes_on"]
        assert metric["value"] == pytest.approx(np.mean([n[low:high] for n in nats]), rel=1e-5)
    for piece, n in zip(pieces(), nats, strict=True):
        per_byte = found["metrics"][f"{piece.source}/nats_per_byte/writes_on"]["value"]
        assert per_byte == pytest.approx(n.sum() / piece.bytes.sum(), rel=1e-5)


def test_without_writes_no_memory_learns(found: dict[str, Any]) -> None:
    """Up to the end of the first online chunk both read the same; after it memories have learnt."""
    on, off = losses_in(found, "writes_on"), losses_in(found, "writes_off")
    assert all(a != b for a, b in zip(on, off, strict=True))
    both = [
        found["metrics"][f"position_0_16/nats_per_token/{arm}"]["value"]
        for arm in ("writes_on", "writes_off")
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-5)
    test = found["paired"]["all/nats_per_token/writes_on-writes_off"]
    assert test["delta"] == pytest.approx(np.mean(on) - np.mean(off)) and test["n"] == 3


def test_second_halves_are_read_alone_by_memories_of_the_first(found: dict[str, Any]) -> None:
    halves = [piece.halves() for piece in pieces()]
    memorized = Memorizer(subject(), Rule())([first.tokens for first, _ in halves]).fast
    for arm, fast in (("baseline", None), ("memorized", memorized)):
        wanted = token_log_probs(subject(), [second.tokens for _, second in halves], fast)
        np.testing.assert_allclose(losses_in(found, arm), [-n.mean() for n in wanted], rtol=1e-5)
    assert losses_in(found, "control") != losses_in(found, "memorized")
    assert "second_half/nats_per_token/memorized-control" in found["paired"]
    assert "second_half_position_32_64/nats_per_token/control" in found["metrics"]
    assert found["updates"]["memorized"]["cms/fast"]["updates_applied"] > 0
    assert set(perplexity.evaluate.figures(found)) == {"perplexity_over_position"}


def test_a_comparison_names_tests_as_the_results_do(found: dict[str, Any]) -> None:
    scores = comparison.scores(found)
    of_pieces = {f"{who}/{arm}" for who in ("all", "austen", "kjv", "sotu") for arm in ("on", "off")}
    assert {name.replace("/nats_per_token/writes_", "/") for name in scores if "writes" in name} == of_pieces
    assert {*scores} - {name for name in scores if "writes" in name} == {
        f"second_half/nats_per_token/{arm}" for arm in ARMS
    }
    assert set(scores) <= set(found["metrics"])
    assert [*scores["second_half/nats_per_token/control"].values()] == losses_in(found, "control")


def test_control_texts_are_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out texts are few: a text of any place would often be the very one that is scored."""
    monkeypatch.setattr(perplexity, "run_arms", lambda *arguments: arguments[-1])
    found, _ = load_pieces(TOKENIZER, None, 2048)
    control: Any = perplexity._second_halves(Run(subject(), Path()), cast(Any, None), found[:3], found)

    def runs(tokens: np.ndarray) -> set[bytes]:
        return {tokens[i : i + 12].tobytes() for i in range(len(tokens) - 12)}

    for piece in found[:3]:
        own = set().union(*(runs(p.tokens) for p in found if p.source == piece.source))
        texts = [control(piece, 1024, seed) for seed in (0, 1, 1)]
        assert [len(text) for text in texts] == [1024] * 3 and not own & (runs(texts[0]) | runs(texts[1]))
        assert (texts[1] == texts[2]).all() and (texts[0] != texts[1]).any()


def test_a_memorized_second_half_is_marked_as_a_leak(tmp_path: Path, found: dict[str, Any]) -> None:
    run = Run(
        subject(), tmp_path, limit=3, arms=ARMS, records=True, options={"perplexity_tokens": 96},
        memorize=Rule(use_correct_answer=True),
    )  # fmt: skip
    leaky = perplexity.evaluate(run)
    assert leaky["metrics"]["second_half/nats_per_token/memorized"]["leak"]
    assert losses_in(leaky, "memorized") != losses_in(found, "memorized")
    assert losses_in(leaky, "baseline") == pytest.approx(losses_in(found, "baseline"), rel=1e-6)
    assert as_if_slow(tmp_path) < perplexity.evaluate(run)["seconds"], "of all starts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perplexity_tokens": 8}, "perplexity_tokens=8: want a whole number of at least 32"),
        ({"perplexity_text": "absent"}, "perplexity_text=absent: no such file or folder"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        perplexity.evaluate(Run(subject(), tmp_path, options=options))
