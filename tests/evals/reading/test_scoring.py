"""Log-likelihoods against one context at a time, read in one call."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.evals.reading.memorize import Memorizer, Rule
from hope_jax.evals.reading.scoring import (
    Pair,
    generate_greedy,
    score_pairs,
    token_log_probs,
)
from hope_jax.evals.reading.subject import Subject
from tests.evals.subjects import subject

VARIANTS = ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 1000, length).astype(np.int32)


def by_hand(subject: Subject, tokens: np.ndarray, targets: int, fast=None) -> np.ndarray:
    """Log-likelihoods [n] of a context whose first `targets` tokens are targets, token by token."""
    trained = subject.trained
    own = trained.fast if fast is None else jax.tree.map(jnp.copy, fast)
    state = trained.streamer.begin(trained.params, 1, 64, own)
    row, found = [trained.tokenizer.bos_id, *tokens], []
    for at, (token, following) in enumerate(zip(row[:-1], row[1:], strict=True)):
        mask = np.array([[at <= targets]])
        logits, state = trained.streamer.feed(trained.params, state, np.array([[token]]), None, mask)
        logits = np.asarray(logits[0, 0], np.float64)
        found.append(logits[following] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return np.array(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_are_scored_as_if_each_were_alone(variant):
    model = subject(variant)
    pairs = [Pair(text(n, n), text(m, 100 + m)) for n, m in ((40, 3), (0, 2), (17, 20), (5, 1), (33, 4))]
    got = score_pairs(model, pairs, batch_size=4)
    for pair, score in zip(pairs, got, strict=True):
        alone = by_hand(model, np.concatenate(pair), len(pair.context))[len(pair.context) :]
        assert score.tokens == len(pair.continuation)
        np.testing.assert_allclose(score.log_prob, alone.sum(), rtol=2e-5)


def endless(variant: str = "hope_attention") -> Subject:
    """The subject without an end of text, which a model of random weights likes to draw."""
    model = subject(variant)
    ids = SimpleNamespace(bos_id=model.trained.tokenizer.bos_id, eos_id=-1)
    return model._replace(trained=model.trained._replace(tokenizer=ids))


def test_a_continuation_teaches_nothing():
    """Its tokens are no targets: with them as targets, later ones would be read with other memories."""
    model = subject()
    pair = Pair(text(40), text(40, 1))
    score = score_pairs(model, [pair])[0].log_prob
    whole = by_hand(model, np.concatenate(pair), 80)[40:].sum()
    assert abs(score - whole) > 1e-3


def test_greedy_is_what_would_be_drawn():
    model = subject()
    drawn = generate_greedy(endless(), [text(20)], 3)[0]
    assert score_pairs(model, [Pair(text(20), drawn)])[0].greedy
    other = drawn.copy()
    other[-1] = (other[-1] + 1) % 1000
    assert not score_pairs(model, [Pair(text(20), other)])[0].greedy


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_in_a_batch_is_that_of_each_prompt_alone(variant):
    model = endless(variant)
    prompts = [text(n, n) for n in (30, 12, 19)]
    together = generate_greedy(model, prompts, 5, batch_size=4)
    for prompt, drawn in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(drawn, generate_greedy(model, [prompt], 5)[0])
        assert len(drawn) == 5


def test_generation_stops_where_it_is_told_to():
    drawn = generate_greedy(endless(), [text(9), text(12)], 8, stop=lambda tokens: len(tokens) == 2)
    assert [len(tokens) for tokens in drawn] == [2, 2]


@pytest.mark.nightly
def test_memories_are_those_of_the_row():
    """Rows of one batch start from memories of their own, or all from one."""
    model = subject()
    memorize = Memorizer(model, Rule(steps=4))
    texts = [text(40, 1), text(25, 2), text(9, 3)]
    own = memorize(texts).fast
    together = token_log_probs(model, texts, own, batch_size=2)
    for i, row in enumerate(texts):
        alone = memorize([row]).fast
        np.testing.assert_allclose(token_log_probs(model, [row], alone)[0], together[i], rtol=1e-4, atol=1e-5)
    one = memorize([texts[0]]).fast
    np.testing.assert_allclose(token_log_probs(model, texts, one)[0], together[0], rtol=1e-4, atol=1e-5)
    assert np.abs(token_log_probs(model, texts, one)[1] - together[1]).max() > 1e-3


def test_one_memory_of_a_batch_is_kept_apart_by_reading_one_at_a_time():
    model = subject(scope="batch")
    pairs = [Pair(text(40, n), text(3, n + 9)) for n in range(3)]
    together = score_pairs(model, pairs, batch_size=4)
    for pair, score in zip(pairs, together, strict=True):
        np.testing.assert_allclose(score.log_prob, score_pairs(model, [pair])[0].log_prob, rtol=1e-6)


@pytest.mark.nightly
def test_batches_of_three_start_from_their_own_memories():
    model = subject()
    texts = [text(20, n) for n in range(3)]
    fast = Memorizer(model, Rule(steps=4))(texts).fast
    want = token_log_probs(model, texts, fast, batch_size=4)
    for three, four in zip(token_log_probs(model, texts, fast, batch_size=3), want, strict=True):
        np.testing.assert_allclose(three, four, rtol=1e-5, atol=1e-6)
