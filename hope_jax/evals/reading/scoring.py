"""Log-likelihoods and greedy continuations of many contexts side by side.

Each is a context of its own that begins with BOS; memories are written on its targets as it is read, as in
any stream. Rows are padded on the right, which reads and writes do not see. `fast` is in all functions the
memories to start from: of as many contexts as there are rows, or of one for all; None: those that training
left. Under memory.scope=batch it is one state that all start from.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Array, PyTree
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Stream

MOST_LOGITS = 2**26
"""Logits that one call leaves at most (256 MiB in float32)."""

Stop = Callable[[list[int]], bool]
"""Whether a text that ends with these drawn tokens is done."""


class Pair(NamedTuple):
    """Token ids, int32 [n] and [m], without BOS; the context may be empty."""

    context: np.ndarray
    continuation: np.ndarray


class Score(NamedTuple):
    """log_prob: of the whole continuation, in nats. tokens: in it. greedy: each was the likeliest."""

    log_prob: float
    tokens: int
    greedy: bool


class Read(NamedTuple):
    """For each token but BOS: log_probs float64 [n] in nats, and whether it was the likeliest, bool [n]."""

    log_probs: np.ndarray
    greedy: np.ndarray


class ReadPrompts(NamedTuple):
    """Prompts that are read once and continued many times: a state of a stream is a value, which what is fed
    after it leaves as it is. state: after as many tokens of all prompts as the shortest has but one. rests:
    the tokens of each that come after those, int32 [at least 1]."""

    state: Stream
    rests: list[np.ndarray]


def score_pairs(
    subject: Subject, pairs: Sequence[Pair], fast: PyTree | None = None, *, batch_size: int = 16
) -> list[Score]:
    """Log-likelihoods of continuations, in the order given. Tokens of contexts are targets, those of
    continuations are not (as `generate --write=prompt`)."""
    rows, targets = [np.concatenate(pair) for pair in pairs], [len(pair.context) for pair in pairs]
    scores = []
    for pair, read in zip(pairs, read_rows(subject, rows, targets, fast, batch_size=batch_size), strict=True):
        log_probs, greedy = (column[len(pair.context) :] for column in read)
        scores.append(Score(float(log_probs.sum()), len(pair.continuation), bool(greedy.all())))
    return scores


def token_log_probs(
    subject: Subject,
    rows: Sequence[np.ndarray],
    fast: PyTree | None = None,
    *,
    batch_size: int = 16,
    targets: bool = True,
) -> list[np.ndarray]:
    """float64 [n] of each row: log p of each of its tokens, all of which are targets, or none."""
    counts = [len(row) if targets else 0 for row in rows]
    return [found.log_probs for found in read_rows(subject, rows, counts, fast, batch_size=batch_size)]


def read_rows(
    subject: Subject,
    rows: Sequence[np.ndarray],
    targets: Sequence[int],
    fast: PyTree | None = None,
    *,
    batch_size: int = 16,
) -> list[Read]:
    """Reads every row, int [n], whose first `targets[i]` tokens are targets; neighbours in length share a
    batch."""
    # Batches come in sizes of powers of two, so few are compiled.
    batch_size = 1 << (subject.batch_size(batch_size).bit_length() - 1)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Read] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + chosen[:1] * ((1 << (len(chosen) - 1).bit_length()) - len(chosen))
        own = take(subject, subject.trained.fast if fast is None else fast, filled)
        batch, counts = [rows[i] for i in chosen], [targets[i] for i in chosen]
        found |= dict(zip(chosen, _read_batch(subject, batch, counts, own), strict=True))
    return [found[i] for i in range(len(rows))]


def _segment(subject: Subject, batch_size: int) -> int:
    """Tokens of a call: whole online chunks whose logits are not too many."""
    size, vocab = subject.trained.streamer.rule.chunk_size, subject.trained.streamer.model.spec.vocab_size
    return max(1, min(256, MOST_LOGITS // (batch_size * vocab * size))) * size


def _read_batch(
    subject: Subject, rows: Sequence[np.ndarray], targets: Sequence[int], fast: PyTree | None
) -> list[Read]:
    trained = subject.trained
    streamer, bos = trained.streamer, trained.tokenizer.bos_id
    batch = 1 << (len(rows) - 1).bit_length()
    size = streamer.rule.chunk_size
    width = -(-max(1, *map(len, rows)) // size) * size
    # The last token is read from, not after: it is no input. Rows that fill the batch are padding.
    tokens = np.full((batch, width + 1), trained.tokenizer.pad_id, np.int32)
    segments, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for i, (row, count) in enumerate(zip(rows, targets, strict=True)):
        tokens[i, : len(row) + 1], segments[i, : len(row) + 1] = [bos, *row], 1
        mask[i, 1 : count + 1] = True
    state = streamer.begin(trained.params, batch, roomy(streamer, width), jax.tree.map(jnp.copy, fast))
    step, reads = _segment(subject, batch), []
    for start in range(0, width, step):
        part = slice(start, min(start + step, width))
        logits, state = streamer.feed(
            trained.params, state, tokens[:, part], segments[:, part], mask[:, part], in_place=True
        )
        reads.append(following_log_probs(logits, tokens[:, part.start + 1 : part.stop + 1]))
    log_probs_bt, greedy_bt = (np.concatenate(columns, 1) for columns in zip(*reads, strict=True))
    return [Read(log_probs_bt[i, : len(row)], greedy_bt[i, : len(row)]) for i, row in enumerate(rows)]


def following_log_probs(logits: Array, following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits [B, n, V], following int32 [B, n]: log p of each of these, float64, and whether it is the
    likeliest."""
    log_probs, greedy = _following(logits, jnp.asarray(following))
    return np.asarray(log_probs, np.float64), np.asarray(greedy)


@jax.jit
def _following(logits: Array, following: Array) -> tuple[Any, Any]:
    own = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    return own - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == following


def read_prompts(
    subject: Subject, prompts: Sequence[np.ndarray], fast: PyTree | None, *, capacity: int, segment: int = 16
) -> ReadPrompts:
    """Reads prompts, int32 [n], side by side; their tokens are targets. capacity: tokens of BOS, a prompt and
    what comes after it at most; a new one compiles anew. segment: online chunks of a call."""
    trained, streamer = subject.trained, subject.trained.streamer
    rows = [np.concatenate([[trained.tokenizer.bos_id], prompt]).astype(np.int32) for prompt in prompts]
    shared, size = min(len(row) for row in rows) - 1, segment * streamer.rule.chunk_size
    own = take(subject, trained.fast if fast is None else fast, list(range(len(rows))))
    state = streamer.begin(trained.params, len(rows), roomy(streamer, capacity), jax.tree.map(jnp.copy, own))
    for start in range(0, shared, size):
        part = np.stack([row[start : min(start + size, shared)] for row in rows])
        _, state = streamer.feed(trained.params, state, part, in_place=True)
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
    logits, _ = streamer.feed(trained.params, read.state, tokens[:, :-1], segments[:, :-1], targets[:, :-1])
    log_probs, greedy = following_log_probs(logits, tokens[:, 1:])
    scores = []
    for i, (row, rest) in enumerate(zip(rows, read.rests, strict=True)):
        part = slice(len(rest) - 1, len(row) - 1)
        total = float(log_probs[i, part].sum())
        scores.append(Score(total, len(row) - len(rest), bool(greedy[i, part].all())))
    return scores


def generate_after(
    subject: Subject, read: ReadPrompts, max_tokens: int, stop: Stop | None = None
) -> list[np.ndarray]:
    """The likeliest tokens after each prompt, int32 [at most max_tokens], without EOS, which ends one. Drawn
    tokens are no targets; the rest of a prompt is fed while others are drawn."""
    trained, state, rests = subject.trained, read.state, read.rests
    likeliest = np.zeros(len(rests), np.int32)
    drawn: list[list[int]] = [[] for _ in rests]
    done, step = [max_tokens == 0] * len(rests), 0
    while not all(done):
        token, target = np.zeros((len(rests), 1), np.int32), np.zeros((len(rests), 1), bool)
        for i, rest in enumerate(rests):
            if step < len(rest):
                token[i], target[i] = rest[step], True
                continue
            token[i] = likeliest[i]
            if not done[i] and not (ends := likeliest[i] == trained.tokenizer.eos_id):
                drawn[i].append(int(likeliest[i]))
                ends = len(drawn[i]) == max_tokens or (stop is not None and stop(drawn[i]))
            done[i] = done[i] or ends
        if not all(done):
            logits, state = trained.streamer.feed(trained.params, state, token, target_mask=target)
            likeliest, step = np.asarray(logits[:, -1].argmax(-1)), step + 1
    return [np.array(tokens, np.int32) for tokens in drawn]


def generate_greedy(
    subject: Subject,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    *,
    fast: PyTree | None = None,
    stop: Stop | None = None,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """What `generate_after` draws after prompts, int32 [n], of any number; neighbours in length share a
    batch."""
    batch_size = subject.batch_size(batch_size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        own, capacity = take(subject, fast, chosen), 1 + len(prompts[chosen[-1]]) + max_tokens
        read = read_prompts(subject, [prompts[i] for i in chosen], own, capacity=capacity)
        found |= dict(zip(chosen, generate_after(subject, read, max_tokens, stop), strict=True))
    return [found[i] for i in range(len(prompts))]
