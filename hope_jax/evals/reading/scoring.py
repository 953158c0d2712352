"""Log-likelihoods and greedy continuations of many contexts side by side.

Each is a context of its own that begins with BOS; memories are written on its targets as it is read, as in
any stream. Rows are padded on the right, which reads and writes do not see. `fast` is in all functions the
memories to start from: of as many contexts as there are rows, or of one for all; None: those that training
left. Under memory.scope=batch it is one state that all start from.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Array, PyTree
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Stream, Streamer

T = TypeVar("T")
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
    read = read_rows(subject, rows, targets, fast, batch_size=batch_size)
    return [_score(*own, slice(count, None)) for own, count in zip(read, targets, strict=True)]


def _score(log_probs: np.ndarray, greedy: np.ndarray, part: slice) -> Score:
    return Score(float(log_probs[part].sum()), len(log_probs[part]), bool(greedy[part].all()))


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
    return [log_probs for log_probs, _ in read_rows(subject, rows, counts, fast, batch_size=batch_size)]


def read_rows(
    subject: Subject,
    rows: Sequence[np.ndarray],
    targets: Sequence[int],
    fast: PyTree | None = None,
    *,
    batch_size: int = 16,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads every row, int [n], whose first `targets[i]` tokens are targets: for each of its tokens log p in
    nats, float64 [n], and whether it was the likeliest, bool [n]."""
    trained, streamer = subject.trained, subject.trained.streamer
    size = streamer.rule.chunk_size

    def read(chosen: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        batch = 1 << (len(chosen) - 1).bit_length()
        filled = chosen + chosen[:1] * (batch - len(chosen))
        own = take(subject, trained.fast if fast is None else fast, filled)
        width = up(max(1, *(len(rows[i]) for i in chosen)), size)
        # The last token is read from, not after: it is no input. Rows that fill the batch are padding.
        whole = [[trained.tokenizer.bos_id, *rows[i]] for i in chosen]
        tokens, segments = padded(whole, width + 1, trained.tokenizer.pad_id, batch)
        mask = np.arange(width + 1) <= np.array([targets[i] for i in filled])[:, None]
        state = streamer.begin(trained.params, batch, roomy(streamer, width), jax.tree.map(jnp.copy, own))
        stops = [*range(0, width, segment_tokens(streamer, batch))[1:], width]
        found = feed_to(streamer, trained.params, state, (tokens, segments, mask), stops)
        return [(found[0][b, : len(rows[i])], found[1][b, : len(rows[i])]) for b, i in enumerate(chosen)]

    # Batches come in sizes of powers of two, so few are compiled.
    batch_size = 1 << (subject.batch_size(batch_size).bit_length() - 1)
    return side_by_side([len(row) for row in rows], batch_size, read)


def side_by_side(sizes: Sequence[Any], most: int, read: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """What `read` returns for each of some rows, in their order; it is given the positions of at most `most`
    rows, which are neighbours in size."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    found: dict[int, T] = {}
    for start in range(0, len(order), most):
        chosen = order[start : start + most]
        found |= dict(zip(chosen, read(chosen), strict=True))
    return [found[i] for i in range(len(order))]


def padded(
    rows: Sequence[Any], width: int, fill: int, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n] side by side, int32 [count, width], with `fill` on the right and in further rows; and where
    they are, 1 beside 0."""
    out = np.full((count or len(rows), width), fill, np.int32)
    there = np.zeros_like(out)
    for i, row in enumerate(rows):
        out[i, : len(row)], there[i, : len(row)] = row, 1
    return out, there


def up(count: int, multiple: int) -> int:
    """The least multiple that is no less."""
    return multiple * -(-count // multiple)


def segment_tokens(streamer: Streamer, batch_size: int, most: int = 256) -> int:
    """Tokens of a call: whole online chunks, `most` of them, whose logits are not too many."""
    size, vocab = streamer.rule.chunk_size, streamer.model.spec.vocab_size
    return max(1, min(most, MOST_LOGITS // (batch_size * vocab * size))) * size


def feed_to(
    streamer: Streamer, params: PyTree, state: Stream, columns: Sequence[np.ndarray], stops: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, Stream]:
    """Feeds tokens, segments and targets [B, at least stops[-1] + 1] in parts that end at `stops`: what
    `following_log_probs` says of the token after each that was fed, and the state, in place of the old."""
    found = []
    for start, stop in pairwise([0, *stops]):
        logits, state = streamer.feed(params, state, *(t[:, start:stop] for t in columns), in_place=True)
        found.append(following_log_probs(logits, columns[0][:, start + 1 : stop + 1]))
    log_probs, greedy = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    return log_probs, greedy, state


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
    subject: Subject, prompts: Sequence[np.ndarray], fast: PyTree | None, *, capacity: int
) -> ReadPrompts:
    """Reads prompts, int32 [n], side by side; their tokens are targets. capacity: tokens of BOS, a prompt and
    what comes after it at most; a new one compiles anew."""
    trained, streamer = subject.trained, subject.trained.streamer
    rows = [np.concatenate([[trained.tokenizer.bos_id], prompt]).astype(np.int32) for prompt in prompts]
    shared, size = min(len(row) for row in rows) - 1, 16 * streamer.rule.chunk_size
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
    longest = max(len(row) for row in rows)
    # Whole online chunks, so few widths are compiled, but no more than the cache has room for
    room = read.state.carry.segments.shape[1] - read.state.position
    width = max(longest, min(up(longest, streamer.rule.chunk_size), room))
    tokens, segments = padded(rows, width + 1, trained.tokenizer.pad_id)
    known = np.array([len(rest) for rest in read.rests])
    targets = np.arange(width) < known[:, None]
    logits, _ = streamer.feed(trained.params, read.state, tokens[:, :-1], segments[:, :-1], targets)
    found = zip(*following_log_probs(logits, tokens[:, 1:]), strict=True)
    parts = [slice(count - 1, len(row) - 1) for count, row in zip(known, rows, strict=True)]
    return [_score(*own, part) for own, part in zip(found, parts, strict=True)]


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

    def draw(chosen: list[int]) -> list[np.ndarray]:
        own, capacity = take(subject, fast, chosen), 1 + len(prompts[chosen[-1]]) + max_tokens
        read = read_prompts(subject, [prompts[i] for i in chosen], own, capacity=capacity)
        return generate_after(subject, read, max_tokens, stop)

    return side_by_side([len(prompt) for prompt in prompts], subject.batch_size(batch_size), draw)
