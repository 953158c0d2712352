"""Greedy continuations of many prompts side by side."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Stream

Stop = Callable[[list[int]], bool]
"""Whether a text that ends with these drawn tokens is done."""


def generate_greedy(
    subject: Subject,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    *,
    fast: PyTree | None = None,
    stop: Stop | None = None,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """The likeliest tokens after each prompt, int32 [at most max_tokens], without EOS, which ends one.

    prompts: int32 [n], BOS is put before; their tokens are targets, drawn ones are not. fast: memories to
    start from, of as many contexts as there are prompts or of one; None: those that training left.
    """
    trained, streamer = subject.trained, subject.trained.streamer
    batch_size = subject.batch_size(batch_size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [np.concatenate([[trained.tokenizer.bos_id], prompts[i]]).astype(np.int32) for i in chosen]
        own = take(subject, trained.fast if fast is None else fast, chosen)
        shortest = len(rows[0])
        capacity = roomy(streamer, len(rows[-1]) + max_tokens)
        state = streamer.begin(trained.params, len(rows), capacity, jax.tree.map(jnp.copy, own))
        state = read_prompt(subject, state, np.stack([row[:shortest] for row in rows]))
        rests = [row[shortest:] for row in rows]
        for i, drawn in zip(chosen, continue_greedy(subject, state, rests, max_tokens, stop), strict=True):
            found[i] = drawn
    return [found[i] for i in range(len(prompts))]


def read_prompt(subject: Subject, state: Stream, tokens: np.ndarray, *, segment: int = 16) -> Stream:
    """The stream after more tokens, int32 [B, n], all targets; `state` cannot be used again. segment: online
    chunks of a call."""
    streamer = subject.trained.streamer
    size = segment * streamer.rule.chunk_size
    for start in range(0, tokens.shape[1], size):
        part = tokens[:, start : start + size]
        _, state = streamer.feed(subject.trained.params, state, part, in_place=True)
    return state


def continue_greedy(
    subject: Subject,
    state: Stream,
    rests: Sequence[np.ndarray],
    max_tokens: int,
    stop: Stop | None = None,
) -> list[np.ndarray]:
    """The likeliest tokens of each stream of `state`, which stays as it is; see `generate_greedy`.

    rests: of each the end of its prompt that has not been read: it is fed, while others are drawn.
    """
    trained, streamer = subject.trained, subject.trained.streamer
    logits = np.asarray(streamer.last_logits(trained.params, state).argmax(-1))
    drawn: list[list[int]] = [[] for _ in rests]
    done = [max_tokens == 0] * len(rests)
    step = 0
    while not all(done):
        token, target = np.zeros((len(rests), 1), np.int32), np.zeros((len(rests), 1), bool)
        for i, rest in enumerate(rests):
            if step < len(rest):
                token[i], target[i] = rest[step], True
                continue
            token[i] = logits[i]
            if done[i]:
                continue
            if logits[i] == trained.tokenizer.eos_id:
                done[i] = True
                continue
            drawn[i].append(int(logits[i]))
            done[i] = len(drawn[i]) == max_tokens or (stop is not None and stop(drawn[i]))
        if all(done):
            break
        read, state = streamer.feed(trained.params, state, token, target_mask=target)
        logits = np.asarray(read[:, -1].argmax(-1))
        step += 1
    return [np.array(tokens, np.int32) for tokens in drawn]
