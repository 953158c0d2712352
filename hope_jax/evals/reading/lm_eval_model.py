"""A subject as a model of EleutherAI's lm-eval: its tasks, prompts and normalisation, our reads.

Importing this module needs lm_eval (extra `eval`).

Every request is a context of its own that begins with BOS and the trained memories (or those that are handed
in), so its answer does not depend on the requests beside it. Memories write while a context is read; the
tokens of a continuation or an answer teach them nothing.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import PyTree
from hope_jax.evals.reading.scoring import Pair, generate_greedy, score_pairs, token_log_probs
from hope_jax.evals.reading.subject import Subject, take

logger = logging.getLogger("hope_jax.evals")

MAX_GEN_TOKS = 256
"""Tokens of an answer where the task names no number, as in lm-eval's own models."""

_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the tokens at most; the first that has a value counts."""

_OF_DRAWS = ("top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed")
"""What shapes draws changes no greedy answer."""

_WITHOUT_EFFECT: Mapping[str, float] = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "presence_penalty": 0, "frequency_penalty": 0, "no_repeat_ngram_size": 0, "min_new_tokens": 0,
    "min_tokens": 0, "min_length": 0,
}  # fmt: skip
"""Values that leave a greedy answer as it is; any other one is refused."""

_NO_TOKEN = -1
"""Stands for the BOS with which a first window begins, and which the scorer puts itself."""


class HopeLM(LM):
    """lm-eval's three kinds of request, answered by a subject.

    batch_size: requests read side by side (one under memory.scope=batch). max_length: tokens, BOS among
    them, that a request may feed to the model; None: no limit, as a stream has none. What it cuts
    docs/evals/zeroshot.md says.

    The three methods take lm-eval's `Instance`s (`args` alone is read) and return answers in their order.
    fast: memories to start from, of as many contexts as there are requests or of one; None: the trained ones.

    Raises: ConfigError: no subject, a batch_size that is no whole number of at least 1, max_length below 2.
    """

    def __init__(self, subject: Subject, *, batch_size: int = 16, max_length: int | None = None) -> None:
        super().__init__()
        if not isinstance(subject, Subject):
            raise ConfigError(f"subject={subject!r}: want a Subject, as evals.subject.open_subject opens one")
        if max_length is not None and (type(max_length) is not int or max_length < 2):
            raise ConfigError(f"max_length={max_length}: want at least 2 tokens, or None for no limit")
        if type(batch_size) is not int or batch_size < 1:
            raise ConfigError(f"batch_size={batch_size!r}: want a whole number of at least 1")
        self.subject, self.batch_size, self.max_length = subject, batch_size, max_length

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p in nats, and whether each token was the likeliest."""
        pairs, emptied = [], 0
        for request in requests:
            context, continuation = self.encode_pair(*request.args)
            pairs.append(Pair(self._end(context, len(continuation)), continuation))
            emptied += len(context) > len(pairs[-1].context) == 0
        if emptied:
            logger.warning(
                "warning: max_length=%s leaves nothing of the contexts of %d requests, whose continuations "
                "are as long; give more", self.max_length, emptied,
            )  # fmt: skip
        scores = score_pairs(self.subject, pairs, fast, batch_size=self.batch_size)
        return [(score.log_prob, score.greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[float]:
        """Of each (text,): log p in nats of the whole text. Without max_length the text is one stream whose
        memories learn from all of it; with one it is read in lm-eval's windows, each a context of its own,
        and each token is scored once."""
        rows: list[np.ndarray] = []
        owners: list[tuple[int, int]] = []  # request, tokens that are scored
        for i, request in enumerate(requests):
            tokens = [int(token) for token in self.encode(request.args[0])]
            window = self.max_length - 1 if self.max_length else max(len(tokens), 1)
            for one in get_rolling_token_windows(tokens, _NO_TOKEN, window, 1):
                before, after = make_disjoint_window(one)
                rows.append(np.array([t for t in before if t != _NO_TOKEN] + after, np.int32))
                owners.append((i, len(after)))
        own = take(self.subject, fast, [i for i, _ in owners])
        # Whole texts are long: one at a time, as their caches and logits take memory.
        size = self.batch_size if self.max_length else 1
        answers = [0.0] * len(requests)
        read = token_log_probs(self.subject, rows, own, batch_size=size)
        for (i, count), log_probs in zip(owners, read, strict=True):
            answers[i] += float(log_probs[len(log_probs) - count :].sum())
        return answers

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[str]:
        """Of each (context, settings): the greedy continuation up to the first text of `until`, which is left
        out. Settings are lm-eval's `generation_kwargs`. Raises: ConfigError for those that `wanted` refuses.
        """
        answers, tokenizer = [""] * len(requests), self.subject.trained.tokenizer
        contexts = [self.encode(request.args[0]) for request in requests]
        for (until, count), chosen in self._by_settings(requests, contexts).items():

            def stop(drawn: list[int], until: tuple[str, ...] = until) -> bool:
                text = tokenizer.decode(drawn)
                return any(end in text for end in until)

            prompts, own = [self._end(contexts[i], count) for i in chosen], take(self.subject, fast, chosen)
            drawn = generate_greedy(
                self.subject, prompts, count, fast=own, stop=stop, batch_size=self.batch_size
            )
            for i, prompt, tokens in zip(chosen, prompts, drawn, strict=True):
                text = "".join(tokenizer.decode_stream(prompt, tokens))
                found = [at for end in until if (at := text.find(end)) >= 0]
                answers[i] = text[: min(found, default=len(text))]
        return answers

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [n], without BOS."""
        return self.subject.trained.tokenizer.encode(text)

    def encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of both: they are encoded as one text and split after as many tokens as the context alone
        has. Spaces that end the context belong to the continuation, as in lm-eval's own models. Where the
        last characters of the context and the whole continuation make one token, that token is the
        continuation: it is never left without one."""
        kept = context.rstrip()
        whole = self.encode(context + continuation)
        split = len(self.encode(kept)) if kept else 0
        if continuation:
            split = min(split, len(whole) - 1)
        return whole[:split], whole[split:]

    def is_cut(self, request: Any) -> bool:
        """Whether max_length parts a request's text: from its beginning, or into windows."""
        if self.max_length is None:
            return False
        if request.request_type == "loglikelihood":
            return sum(map(len, self.encode_pair(*request.args))) > self.max_length
        context = self.encode(request.args[0])
        if request.request_type == "loglikelihood_rolling":
            return len(context) >= self.max_length
        return len(context) + self._answer_tokens(wanted(request.args[1]), context) > self.max_length

    def _end(self, context: np.ndarray, following: int) -> np.ndarray:
        """As many of the context's last tokens as max_length leaves beside BOS and `following` tokens, the
        last of which is not fed."""
        if self.max_length is None or len(context) + following <= self.max_length:
            return context
        return context[len(context) - max(0, self.max_length - following) :]

    def _by_settings(
        self, requests: Sequence[Any], contexts: Sequence[np.ndarray]
    ) -> dict["Wanted", list[int]]:
        """Positions of the requests by what is done for them. Raises: ConfigError."""
        groups: dict[Wanted, list[int]] = {}
        shortened: set[int] = set()
        for i, request in enumerate(requests):
            asked = wanted(request.args[1])
            count = self._answer_tokens(asked, contexts[i])
            shortened |= {asked.tokens} if count < asked.tokens else set()
            groups.setdefault(asked._replace(tokens=count), []).append(i)
        for tokens in sorted(shortened):
            logger.warning(
                "warning: max_gen_toks=%d does not fit into max_length=%d beside a prompt: answers are "
                "drawn with fewer tokens", tokens, self.max_length,
            )  # fmt: skip
        return groups

    def _answer_tokens(self, asked: "Wanted", context: np.ndarray) -> int:
        """Tokens of an answer at most: those asked for, which a prompt makes room for (`_end`), unless they
        would leave nothing of any prompt."""
        if self.max_length is None or asked.tokens < self.max_length:
            return asked.tokens
        return min(asked.tokens, max(self.max_length // 2, self.max_length - len(context)))


class Wanted(NamedTuple):
    """until: texts that end an answer. tokens: of it at most."""

    until: tuple[str, ...]
    tokens: int


def wanted(settings: Mapping[str, Any] | None) -> Wanted:
    """What lm-eval's `generation_kwargs` ask of an answer, read as lm-eval's own models read them: each is
    honoured, or refused with an error that names it (docs/evals/zeroshot.md lists them). Raises: ConfigError:
    they ask for what a greedy answer is not, or a value is none."""
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    _check_greedy(given.get("do_sample"), given.get("temperature"))
    for key, value in given.items():
        if key in _WITHOUT_EFFECT:
            if _number(key, value) != _WITHOUT_EFFECT[key]:
                _refuse(key, value, f"that is not done here; want {key}={_WITHOUT_EFFECT[key]:g}, or none")
        elif key not in ("until", "do_sample", "temperature", *_COUNTS, *_OF_DRAWS):
            remedy = {"stop": "give until", "max_length": "give max_gen_toks"}.get(key, "leave it out")
            _refuse(key, value, f"no such setting is known here; {remedy}")
    until = given.get("until", ())
    ends = (until,) if isinstance(until, str) else until
    if not isinstance(ends, list | tuple) or not all(isinstance(end, str) for end in ends):
        _refuse("until", until, "want a text, or a list of texts")
    named = next((key for key in _COUNTS if key in given), _COUNTS[0])
    count = _number(named, given.get(named, MAX_GEN_TOKS))
    if count < 1 or count != int(count):
        _refuse(named, given[named], "want a whole number of tokens, at least 1")
    return Wanted(tuple(end for end in ends if end), int(count))


def _check_greedy(sample: Any, heat: Any) -> None:
    if isinstance(sample, str) and sample.lower() in ("true", "false"):
        sample = sample.lower() == "true"
    if sample not in (None, True, False):
        _refuse("do_sample", sample, "want true or false")
    degrees = None if heat is None else _number("temperature", heat)
    if degrees is not None and degrees < 0:
        _refuse("temperature", heat, "want a number of at least 0")
    if sample is None and degrees:
        _refuse("temperature", heat, "answers are greedy; want temperature=0, or do_sample=false beside it")
    # As in lm-eval's own models do_sample=false overrules a temperature, and a temperature of 0 is greedy.
    if sample and degrees != 0:
        beside = "" if heat is None else f" beside temperature={heat!r}"
        _refuse("do_sample", f"true{beside}", "answers are greedy; want do_sample=false")


def _number(key: str, value: Any) -> float:
    """A finite number, or the text of one, as YAML and command lines leave them."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        _refuse(key, value, "want a number")
    return found


def _refuse(key: str, value: Any, why: str) -> NoReturn:
    raise ConfigError(f"generation_kwargs: {key}={value}: {why}")
