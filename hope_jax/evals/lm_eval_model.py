"""A subject as a model of EleutherAI's lm-eval: its tasks, prompts and normalisation, our reads.

Importing this module needs lm_eval (extra `eval`).

Every request is a context of its own that begins with BOS and the trained memories (or those that are handed
in), so its answer does not depend on the requests beside it. Memories write while a context is read; the
tokens of a continuation or an answer teach them nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hope_jax.errors import ConfigError
from hope_jax.evals.generation import generate_greedy
from hope_jax.evals.scoring import Pair, score_pairs, stream_log_probs, token_log_probs
from hope_jax.evals.subject import Subject, take
from hope_jax.types import PyTree

MAX_GEN_TOKS = 256
"""Tokens of an answer where the task names no number, as in lm-eval's own models."""


class HopeLM(LM):
    """lm-eval's three kinds of request, answered by a subject.

    batch_size: requests read side by side (one under memory.scope=batch). max_length: tokens, BOS among
    them, that a request may feed to the model. None: no limit, as a stream has none. With a limit a context
    loses its beginning, BOS apart, and never its continuation (`is_cut`).

    The three methods take lm-eval's `Instance`s (`args` alone is read) and return answers in their order.
    fast: memories to start from, of as many contexts as there are requests or of one; None: the trained ones.

    Raises:
      ConfigError: max_length below 2.
    """

    def __init__(self, subject: Subject, *, batch_size: int = 16, max_length: int | None = None) -> None:
        super().__init__()
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length={max_length}: want at least 2 tokens, or None for no limit")
        self.subject, self.batch_size, self.max_length = subject, batch_size, max_length

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p in nats, and whether each token was the likeliest."""
        pairs = []
        for request in requests:
            context, continuation = self.encode_pair(*request.args)
            pairs.append(Pair(self._end(context, len(continuation)), continuation))
        scores = score_pairs(self.subject, pairs, fast, batch_size=self.batch_size)
        return [(score.log_prob, score.greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[float]:
        """Of each (text,): log p in nats of the whole text.

        Without max_length the text is one stream whose memories learn from all of it; with one it is read
        in lm-eval's windows, each a context of its own, and each token is scored once.
        """
        if self.max_length is not None:
            return self._by_windows(requests, fast)
        answers = []
        for i, request in enumerate(requests):
            own = take(self.subject, fast, [i])
            parts = stream_log_probs(self.subject, self.encode(request.args[0]), own)
            answers.append(float(sum(part.sum() for part in parts)))
        return answers

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False, *, fast: PyTree | None = None
    ) -> list[str]:
        """Of each (context, settings): the greedy continuation up to the first text of `until`, which is left
        out.

        Raises:
          ConfigError: the settings ask for draws.
        """
        answers = [""] * len(requests)
        for (until, count), chosen in _by_settings(requests).items():
            prompts = [self._end(self.encode(requests[i].args[0]), count) for i in chosen]
            drawn = generate_greedy(
                self.subject,
                prompts,
                count,
                fast=take(self.subject, fast, chosen),
                stop=self._stop(until),
                batch_size=self.batch_size,
            )
            for i, prompt, tokens in zip(chosen, prompts, drawn, strict=True):
                text = "".join(self.subject.trained.tokenizer.decode_stream(prompt, tokens))
                answers[i] = _before(text, until)
        return answers

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [n], without BOS."""
        return self.subject.trained.tokenizer.encode(text)

    def encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of both: they are encoded as one text and split after as many tokens as the context alone
        has. Spaces that end the context belong to the continuation, as in lm-eval's own models.

        Where the last characters of the context and the whole continuation make one token, that token is the
        continuation: it is never left without one.
        """
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
        if request.request_type == "loglikelihood_rolling":
            return len(self.encode(request.args[0])) > self._window
        if request.request_type == "generate_until":
            return len(self.encode(request.args[0])) + _most_tokens(request) > self.max_length
        return sum(map(len, self.encode_pair(*request.args))) > self.max_length

    @property
    def _window(self) -> int:
        """Tokens of a window beside the BOS with which it begins."""
        return (self.max_length or 2) - 1

    def _end(self, context: np.ndarray, following: int) -> np.ndarray:
        """As many of the context's last tokens as max_length leaves beside BOS and `following` tokens, the
        last of which is not fed."""
        if self.max_length is None or len(context) + following <= self.max_length:
            return context
        return context[len(context) - max(0, self.max_length - following) :]

    def _by_windows(self, requests: Sequence[Any], fast: PyTree | None) -> list[float]:
        rows: list[np.ndarray] = []
        scored: list[int] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            tokens = [int(token) for token in self.encode(request.args[0])]
            for window in get_rolling_token_windows(tokens, _NO_TOKEN, self._window, 1):
                before, after = make_disjoint_window(window)
                rows.append(np.array([t for t in before if t != _NO_TOKEN] + after, np.int32))
                scored.append(len(after))
                owners.append(i)
        own = take(self.subject, fast, owners)
        answers = [0.0] * len(requests)
        if rows:
            read = token_log_probs(self.subject, rows, own, batch_size=self.batch_size)
            for i, count, log_probs in zip(owners, scored, read, strict=True):
                answers[i] += float(log_probs[len(log_probs) - count :].sum())
        return answers

    def _stop(self, until: tuple[str, ...]) -> Callable[[list[int]], bool]:
        def stop(drawn: list[int]) -> bool:
            text = self.subject.trained.tokenizer.decode(drawn)
            return any(end in text for end in until)

        return stop


_NO_TOKEN = -1
"""Stands for the BOS with which a first window begins, and which the scorer puts itself."""


def _by_settings(requests: Sequence[Any]) -> dict[tuple[tuple[str, ...], int], list[int]]:
    """Positions of the requests by their texts that end an answer and its tokens at most."""
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for i, request in enumerate(requests):
        settings = request.args[1]
        if settings.get("do_sample") or settings.get("temperature", 0.0) > 0.0:
            raise ConfigError(f"generation_kwargs={settings}: answers are greedy; want do_sample=false")
        until = settings.get("until") or ()
        ends = (until,) if isinstance(until, str) else tuple(end for end in until if end)
        groups.setdefault((ends, _most_tokens(request)), []).append(i)
    return groups


def _most_tokens(request: Any) -> int:
    return int(request.args[1].get("max_gen_toks", MAX_GEN_TOKS))


def _before(text: str, until: tuple[str, ...]) -> str:
    """The text up to the first of `until`."""
    return text[: min((at for end in until if (at := text.find(end)) >= 0), default=len(text))]
