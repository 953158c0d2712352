"""Answers of the adapter against one request at a time, read in one call of the stream."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from hope_jax.core.errors import ConfigError
from hope_jax.evals.reading.lm_eval_model import HopeLM
from hope_jax.evals.reading.scoring import Pair
from hope_jax.evals.reading.subject import Subject
from tests.evals.subjects import subject

PAIRS = [
    ("Question: What is salt?\nAnswer:", " a white stone from the sea"),
    ("", "In the beginning was the sea, and it was deep and cold."),
    ("And it came to pass in those days, that there went out a decree from Caesar ", "Augustus"),
    ("Question: What is salt, the white stone?\nAnswer:", " bread"),
    ("He was", " a servant of the king, and the king was in the house of the Lord."),
]
"""Of 17 to 32 tokens, so that they compile for one capacity: one chunk is written, another begun."""


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, 0) for args in arguments]  # type: ignore[arg-type]


def loglikelihood(model: HopeLM, pairs: Sequence[tuple[str, str]], **more: Any) -> list[tuple[float, bool]]:
    return model.loglikelihood(requests("loglikelihood", pairs), **more)


def read(of: Subject, tokens: Sequence[int], targets: int, fast: Any = None) -> np.ndarray:
    """Log-probabilities float64 [n, V] before each token, the first `targets` of which are targets."""
    trained = of.trained
    row = np.array([[trained.tokenizer.bos_id, *tokens[:-1]]])
    own = jax.tree.map(jnp.copy, trained.fast if fast is None else fast)
    state = trained.streamer.begin(trained.params, 1, 32, own)
    mask = np.arange(row.shape[1])[None] <= targets
    logits, _ = trained.streamer.feed(trained.params, state, row, target_mask=mask, in_place=True)
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float64)[0]))


def directly(
    of: Subject, context: Sequence[int], continuation: Sequence[int], fast: Any = None
) -> tuple[float, bool]:
    """Summed log-likelihood of the continuation, and whether it is greedy."""
    table = read(of, [*context, *continuation], len(context), fast)[len(context) :]
    found = table[np.arange(len(continuation)), list(continuation)].sum()
    return float(found), bool((table.argmax(-1) == continuation).all())


def encoded(of: Subject, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both together, split after the tokens of the context without its last spaces."""
    whole = of.trained.tokenizer.encode(context + continuation).tolist()
    split = len(of.trained.tokenizer.encode(context.rstrip()))
    return whole[:split], whole[split:]


@pytest.mark.parametrize("scope", ["example", pytest.param("batch", marks=pytest.mark.nightly)])
def test_log_likelihoods_are_those_of_single_requests(scope: str) -> None:
    of = subject("hope_attention", scope, "float64")
    got = loglikelihood(HopeLM(of, batch_size=2), PAIRS)
    for pair, (log_prob, greedy) in zip(PAIRS, got, strict=True):
        want = directly(of, *encoded(of, *pair))
        assert abs(log_prob - want[0]) < 1e-9 and greedy == want[1]


def test_a_greedy_continuation_is_told(hope: Subject) -> None:
    context, best = hope.trained.tokenizer.encode(PAIRS[2][0]).tolist(), []
    for _ in range(3):
        best.append(int(read(hope, [*context, *best, 0], len(context))[-1].argmax()))
    text = hope.trained.tokenizer.decode([*context, *best]).removeprefix(PAIRS[2][0])
    model = HopeLM(hope)
    assert model.generate_until(requests("generate_until", [(PAIRS[2][0], {"max_gen_toks": 3})])) == [text]
    assert directly(hope, context, best)[1]
    pairs = [Pair(np.array(context), np.array(end)) for end in (best, [*best[:2], (best[2] + 1) % 1000])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "encode_pair", lambda context, continuation: pairs[int(continuation)])
        assert [found[1] for found in loglikelihood(model, [("", "0"), ("", "1")])] == [True, False]


def test_scores_depend_neither_on_order_nor_on_neighbours(hope: Subject) -> None:
    """With memories that have written, of each request its own."""
    model = HopeLM(hope, batch_size=2)
    trained, rows = hope.trained, np.random.default_rng(0).integers(5, 1000, (2, 17))
    state = trained.streamer.begin(trained.params, 2, 32)
    fast = trained.streamer.feed(trained.params, state, rows, in_place=True)[1].fast
    of_two = [PAIRS[0], PAIRS[4]]
    together = loglikelihood(model, of_two, fast=fast)
    swapped = loglikelihood(model, of_two[::-1], fast=jax.tree.map(lambda t: t[::-1], fast))
    alone = [
        loglikelihood(model, [pair], fast=jax.tree.map(lambda t, i=i: t[i : i + 1], fast))[0]
        for i, pair in enumerate(of_two)
    ]
    plain = loglikelihood(model, of_two)
    for i in range(2):
        assert abs(together[i][0] - alone[i][0]) < 1e-9 and abs(together[i][0] - swapped[1 - i][0]) < 1e-9
        assert abs(together[i][0] - plain[i][0]) > 1e-4
    assert loglikelihood(model, of_two) == plain


def test_the_beginning_of_a_long_context_is_cut(hope: Subject) -> None:
    model = HopeLM(hope, batch_size=2, max_length=24)
    assert max(len(sum(encoded(hope, *pair), [])) for pair in PAIRS) > 24
    for pair, (log_prob, _) in zip(PAIRS, loglikelihood(model, PAIRS), strict=True):
        context, continuation = encoded(hope, *pair)
        kept = context[max(0, len(context) + len(continuation) - 24) :]
        assert abs(log_prob - directly(hope, kept, continuation)[0]) < 1e-9
    cut = [model.is_cut(request) for request in requests("loglikelihood", PAIRS)]
    assert cut == [len(sum(encoded(hope, *pair), [])) > 24 for pair in PAIRS] and not all(cut)
    short = HopeLM(hope, batch_size=2, max_length=2)
    context, continuation = encoded(hope, *PAIRS[4])
    assert len(continuation) > 16
    assert abs(loglikelihood(short, PAIRS[4:])[0][0] - directly(hope, [], continuation)[0]) < 1e-9
    with pytest.raises(ConfigError, match="max_length=1: want at least 2"):
        HopeLM(hope, max_length=1)


def test_pairs_are_encoded_together(hope: Subject) -> None:
    model = HopeLM(hope)
    for context, continuation in PAIRS:
        one, two = model.encode_pair(context, continuation)
        assert model.encode(context + continuation).tolist() == [*one, *two] and len(two)
    assert model.encode_pair("Amen ", "the")[1].tolist() == model.encode_pair("Amen", " the")[1].tolist()
    # No more tokens than the context alone: the last is the continuation.
    assert len(model.encode("house")) == len(model.encode("hou")) and len(model.encode("and")) == 1
    for pair in (("hou", "se"), ("an", "d")):
        whole = model.encode("".join(pair)).tolist()
        assert [part.tolist() for part in model.encode_pair(*pair)] == [whole[:-1], whole[-1:]]


def test_rolling_reads_a_text_as_one_stream(hope: Subject) -> None:
    text, other = "The sea was deep. " * 4, "He was a servant of the king, and the king was"
    tokens = hope.trained.tokenizer.encode(text).tolist()
    table = read(hope, tokens, len(tokens))
    got = HopeLM(hope).loglikelihood_rolling(requests("loglikelihood_rolling", [(text,), (other,)]))
    assert abs(got[0] - table[np.arange(len(tokens)), tokens].sum()) < 1e-9
    # Nothing is carried from text to text; with a limit each token is scored once, in lm-eval's windows.
    limited = HopeLM(hope, max_length=25, batch_size=2)
    asked = requests("loglikelihood_rolling", [(other,), (text,), ("",)])
    windows = limited.loglikelihood_rolling(asked)
    assert [limited.is_cut(request) for request in asked] == [False, True, False]
    assert len(tokens) > 24 and abs(windows[0] - got[1]) < 1e-9
    first, rest = tokens[:24], tokens[24:]
    before = tokens[len(tokens) - 25 : 24]
    want = read(hope, first, 24)[np.arange(24), first].sum()
    want += read(hope, [*before, *rest], 25)[np.arange(len(before), 25), rest].sum()
    assert abs(windows[1] - want) < 1e-9 and windows[2] == 0


def test_generation_ends_at_a_text(hope: Subject) -> None:
    model = HopeLM(hope, batch_size=2)
    given = (PAIRS[2][0], "He was a servant of the king, and the king was")
    whole = model.generate_until(requests("generate_until", [(text, {"max_gen_toks": 6}) for text in given]))
    assert all(whole) and whole[0] != whole[1]
    ends = [text[len(text) // 2 :][:2] for text in whole]
    cut = model.generate_until(
        requests(
            "generate_until",
            [
                (text, {"until": [end, "%%"], "max_gen_toks": 6})
                for text, end in zip(given, ends, strict=True)
            ],
        )
    )
    assert cut == [text[: text.find(end)] for text, end in zip(whole, ends, strict=True)]
    with pytest.raises(ConfigError, match="answers are greedy"):
        model.generate_until(requests("generate_until", [("a", {"do_sample": True, "temperature": 1.0})]))


def test_a_request_for_a_long_answer_does_not_empty_its_prompt(
    hope: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 16 tokens the prompt keeps its last 8, or all of a short one, whose answer is what is left."""
    limited, free = HopeLM(hope, max_length=16), HopeLM(hope)
    long, short = "He was a servant of the king, and the king was in the house", "And it came to"
    tokens = limited.encode(long)
    last = hope.trained.tokenizer.decode(tokens[-8:])
    left = 16 - len(limited.encode(short))
    assert limited.encode(last).tolist() == tokens[-8:].tolist() and len(tokens) > 16 and left > 8

    def answers(model: HopeLM, *asked: tuple[str, int]) -> list[str]:
        return model.generate_until(
            requests("generate_until", [(text, {"max_gen_toks": n}) for text, n in asked])
        )

    with caplog.at_level("WARNING", "hope_jax.evals"):
        got = answers(limited, (long, 16), (long, 4000), (short, 16), ("", 17))
    assert got == answers(free, (last, 8), (last, 8), (short, left), ("", 16))
    assert got[0] and got[0] != got[3]
    assert (
        "max_gen_toks=16 does not fit into max_length=16" in caplog.text
        and "max_gen_toks=4000" in caplog.text
    )
    cut = [limited.is_cut(each) for each in requests("generate_until", [(long, {}), (short, {})])]
    assert cut == [True, False]
    # Below the limit the answer keeps its length, as in lm-eval's own models.
    ends = hope.trained.tokenizer.decode(tokens[-2:])
    assert answers(limited, (long, 14)) == answers(free, (ends, 14))


def test_a_context_without_room_is_told(hope: Subject, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "hope_jax.evals"):
        loglikelihood(HopeLM(hope, max_length=2), [PAIRS[4], PAIRS[1]])
    assert "max_length=2 leaves nothing of the contexts of 1 requests" in caplog.text


def test_nothing_has_a_log_likelihood_of_zero(hope: Subject) -> None:
    model = HopeLM(hope)
    assert loglikelihood(model, [("", ""), ("And it", "")]) == [(0.0, True)] * 2
    assert loglikelihood(model, []) == [] == model.generate_until([])
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", [("",)])) == [0.0]


def test_arguments_that_cannot_be_are_refused(hope: Subject) -> None:
    for arguments, message in (
        ({"batch_size": "auto"}, "batch_size='auto': want a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0: want"),
        ({"max_length": "64"}, "max_length=64: want at least 2 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            HopeLM(hope, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="subject='runs/x': want a Subject"):
        HopeLM.create_from_arg_string("subject=runs/x", {"batch_size": 1})


@pytest.fixture(scope="module")
def hope() -> Subject:
    return subject("hope_attention", "example", "float64")
