"""Prompts that are read once and continued many times: candidates scored, an answer drawn.

A state of a stream is a value: what is fed after it leaves it as it is, so all continuations start from the
same one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals.reading.generation import continue_greedy, read_prompt
from hope_jax.evals.reading.scoring import Score, following_log_probs
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Stream


class ReadPrompts(NamedTuple):
    """state: after as many tokens of all prompts as the shortest has but one. rests: the tokens of each that
    come after those, int32 [at least 1]."""

    state: Stream
    rests: list[np.ndarray]


def read_prompts(
    subject: Subject, prompts: Sequence[np.ndarray], fast: PyTree | None, *, capacity: int
) -> ReadPrompts:
    """Reads prompts side by side, segment by segment, each a context of its own that begins with BOS.

    prompts: int32 [n] with n > 0; their tokens are targets. fast: memories to start from, of as many contexts
    or of one; None: those that training left. capacity: tokens of a prompt and what comes after it at most; a
    new one compiles anew.
    """
    trained, streamer = subject.trained, subject.trained.streamer
    rows = [np.concatenate([[trained.tokenizer.bos_id], prompt]).astype(np.int32) for prompt in prompts]
    shared = min(len(row) for row in rows) - 1
    own = take(subject, trained.fast if fast is None else fast, list(range(len(rows))))
    state = streamer.begin(trained.params, len(rows), roomy(streamer, capacity), jax.tree.map(jnp.copy, own))
    state = read_prompt(subject, state, np.stack([row[:shared] for row in rows]))
    return ReadPrompts(state, [row[shared:] for row in rows])


def score_after(subject: Subject, read: ReadPrompts, continuations: Sequence[np.ndarray]) -> list[Score]:
    """Log-likelihood of one continuation a prompt, int32 [at least 1], whose tokens are no targets."""
    trained, streamer = subject.trained, subject.trained.streamer
    rows = [np.concatenate(pair) for pair in zip(read.rests, continuations, strict=True)]
    longest, size = max(len(row) for row in rows), streamer.rule.chunk_size
    # Whole online chunks, so few widths are compiled, but no more than the cache has room for
    room = read.state.carry.segments.shape[1] - read.state.position
    width = max(longest, min(-(-longest // size) * size, room))
    tokens = np.full((len(rows), width + 1), trained.tokenizer.pad_id, np.int32)
    segments, targets = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for i, (row, rest) in enumerate(zip(rows, read.rests, strict=True)):
        tokens[i, : len(row)], segments[i, : len(row)], targets[i, : len(rest)] = row, 1, True
    logits, _ = streamer.feed(
        trained.params, read.state, tokens[:, :-1], segment_ids=segments[:, :-1], target_mask=targets[:, :-1]
    )
    log_probs, greedy = (
        np.asarray(found) for found in following_log_probs(logits, jnp.asarray(tokens[:, 1:]))
    )
    scores = []
    for i, (row, rest) in enumerate(zip(rows, read.rests, strict=True)):
        part = slice(len(rest) - 1, len(row) - 1)
        total = float(log_probs[i, part].astype(np.float64).sum())
        scores.append(Score(total, len(row) - len(rest), bool(greedy[i, part].all())))
    return scores


def generate_after(subject: Subject, read: ReadPrompts, max_tokens: int) -> list[np.ndarray]:
    """The likeliest tokens after each prompt, int32 [at most max_tokens], without EOS, which ends one."""
    return continue_greedy(subject, read.state, read.rests, max_tokens)
