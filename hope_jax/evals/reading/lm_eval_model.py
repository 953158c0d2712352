"""A subject as a model of EleutherAI's lm-eval: its tasks, prompts and normalisation, our reads.

Importing this module needs lm_eval (extra `eval`).

Every request is a context of its own that begins with BOS and the trained memories (or those that are handed
in), so its answer does not depend on the requests beside it. Memories write while a context is read; the
tokens of a continuation or an answer teach them nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import PyTree
from hope_jax.evals.reading.generation import generate_greedy
from hope_jax.evals.reading.generation_kwargs import Wanted, wanted
from hope_jax.evals.reading.scoring import Pair, score_pairs, stream_log_probs, token_log_probs
from hope_jax.evals.reading.subject import Subject, take

logger = logging.getLogger("hope_jax.evals")


class HopeLM(LM):
    """lm-eval's three kinds of request, answered by a subject.

    batch_size: requests read side by side (one under memory.scope=batch). max_length: tokens, BOS among
    them, that a request may feed to the model. None: no limit, as a stream has none. With a limit a context
    loses its beginning, BOS apart, and never its continuation (`is_cut`). An answer that may be as long as
    the limit or longer gets half of it, or what its prompt leaves if that is more.

    The three methods take lm-eval's `Instance`s (`args` alone is read) and return answers in their order.
    fast: memories to start from, of as many contexts as there are requests or of one; None: the trained ones.

    Raises:
      ConfigError: no subject, a batch_size that is no whole number of at least 1, max_length below 2.
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
        out. Settings are lm-eval's `generation_kwargs`; see `generation_kwargs.wanted`.

        Raises:
          ConfigError: the settings ask for what is not done here.
        """
        answers = [""] * len(requests)
        contexts = [self.encode(request.args[0]) for request in requests]
        for (until, count), chosen in self._by_settings(requests, contexts).items():
            prompts = [self._end(contexts[i], count) for i in chosen]
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
            context = self.encode(request.args[0])
            return len(context) + self._answer_tokens(wanted(request.args[1]), context) > self.max_length
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

    def _by_settings(
        self, requests: Sequence[Any], contexts: Sequence[np.ndarray]
    ) -> dict[Wanted, list[int]]:
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

    def _answer_tokens(self, asked: Wanted, context: np.ndarray) -> int:
        """Tokens of an answer at most: those asked for, which a prompt makes room for (`_end`), unless they
        would leave nothing of any prompt."""
        if self.max_length is None or asked.tokens < self.max_length:
            return asked.tokens
        return min(asked.tokens, max(self.max_length // 2, self.max_length - len(context)))

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


def _before(text: str, until: tuple[str, ...]) -> str:
    """The text up to the first of `until`."""
    return text[: min((at for end in until if (at := text.find(end)) >= 0), default=len(text))]
