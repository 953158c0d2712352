"""Test-time memorization: a text is read, what it wrote is kept, and an item is scored with it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import PyTree
from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading import updates
from hope_jax.evals.reading.selective import SelectiveModel, check_selection, paths_of
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.evals.reading.updates import Updates
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Streamer
from hope_jax.models.lm import HopeModel


class Rule(NamedTuple):
    """steps: times that a text is read. carry: False: each item starts from the trained memories ("reset");
    True: from those that the item before it left. paths, layers: see `SelectiveModel`. surprise_threshold:
    of the gate; None: the model's own. use_correct_answer: the text holds the right answer, a leak by design.
    """

    steps: int = 1
    carry: bool = False
    paths: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    surprise_threshold: float | None = None
    use_correct_answer: bool = False


class Memorized(NamedTuple):
    """fast: of each layer, leaves [B, ...] (no axis B under memory.scope=batch). stats: of its writes, values
    [B]."""

    fast: PyTree
    stats: Updates


def writing_streamer(subject: Subject, rule: Rule) -> Streamer:
    """The subject's streams with what a rule says of writes.

    Partial periods are written when a stream ends, so a text counts to its end, and padding after it changes
    nothing. A text is one context, in which no document begins another.

    Raises:
      ConfigError: the rule asks for what the model does not have.
    """
    base = subject.trained.streamer
    if rule.steps < 1:
        raise ConfigError(f"--memorize_steps={rule.steps}: want at least 1")
    check_selection(base.model, rule.paths, rule.layers)
    spec = base.model.spec
    memory = replace(spec.memory, reset_at_document=False)
    if rule.surprise_threshold is not None:
        memory = replace(memory, surprise_threshold=rule.surprise_threshold)
    spec = replace(spec, memory=memory, cms=replace(spec.cms, flush_partial_at_end=True))
    return Streamer(SelectiveModel(spec, rule.paths, rule.layers), base.rule)


def fitting(model: HopeModel, rule: Rule) -> Rule | None:
    """The rule with those of its memories and layers that the model has; None: none of them, or no
    memories at all."""
    known = paths_of(model)
    paths = tuple(path for path in rule.paths if path in known)
    layers = tuple(layer for layer in rule.layers if 0 <= layer < model.spec.num_layers)
    if not known or bool(paths) != bool(rule.paths) or bool(layers) != bool(rule.layers):
        return None
    return rule._replace(paths=paths, layers=layers)


def whole_tokens(streamer: Streamer) -> int:
    """Tokens to a multiple of which texts are padded: padding ends the chunks of memories that write while
    they read, which a stream's end would leave unwritten."""
    memories = streamer.model.stream_memories().values()
    return max([streamer.rule.chunk_size, *(period for m in memories for period in m.periods().values())])


def readings(model: HopeModel, rule: Rule) -> dict[str, int]:
    """How often the layers of each memory that writes while it reads read a text."""
    layers = len(rule.layers) or model.spec.num_layers
    return {
        name: rule.steps * layers * (not rule.paths or name in rule.paths) for name in model.stream_memories()
    }


class Memorizer:
    """Writes texts into memories of a subject.

    Raises:
      ConfigError: the rule asks for what the model does not have.
    """

    def __init__(self, subject: Subject, rule: Rule) -> None:
        self.subject, self.rule = subject, rule
        self.streamer = writing_streamer(subject, rule)

    def __call__(self, texts: Sequence[np.ndarray], fast: PyTree | None = None) -> Memorized:
        """Reads each text, after BOS, as a context of its own, `steps` times from its beginning.

        texts: int32 [n] token ids of any lengths; under memory.scope=batch one. fast: memories to start
        from, of as many contexts or of one; None: those that training left. All tokens are targets. What
        remains of a text is its writes: neither attention cache nor convolutions.
        """
        if self.subject.shared_memory and len(texts) != 1:
            raise ValueError(f"texts: want one under memory.scope=batch, got {len(texts)}")
        trained, streamer = self.subject.trained, self.streamer
        tokens, segments = _rows(texts, whole_tokens(streamer), trained.tokenizer)
        own = take(self.subject, trained.fast if fast is None else fast, list(range(len(texts))))
        total: Updates = {}
        for _ in range(self.rule.steps):
            state = streamer.begin(trained.params, len(texts), roomy(streamer, tokens.shape[1]), own)
            for start in range(0, tokens.shape[1], _SEGMENT * streamer.rule.chunk_size):
                part = slice(start, start + _SEGMENT * streamer.rule.chunk_size)
                _, state = streamer.feed(trained.params, state, tokens[:, part], segments[:, part])
            result = streamer.finish(trained.params, state)
            own = result.fast
            updates.add(total, result.stats)
        lengths = [len(text) + 1 for text in texts]
        updates.count_texts(total, streamer.model, lengths, readings(streamer.model, self.rule))
        return Memorized(own, total)


_SEGMENT = 16
"""Online chunks of a call: the logits that nobody needs are few."""


def unrelated(subject: Subject, length: int, seed: int) -> np.ndarray:
    """`length` tokens, int32, of held-out text of the embedded corpus, from another place for each seed; the
    control arm's text. A length beyond the corpus begins it anew."""
    return excerpt(_held_out(subject.trained.tokenizer), length, seed)


def excerpt(tokens: np.ndarray, length: int, seed: int) -> np.ndarray:
    """`length` of the tokens, int32, from a place of the seed's; after the last comes the first."""
    start = int(np.random.default_rng([seed, length]).integers(len(tokens)))
    return np.take(tokens, np.arange(start, start + length), mode="wrap")


@cache
def _held_out(tokenizer: Tokenizer) -> np.ndarray:
    documents = split_documents(load_documents(EMBEDDED))[1]
    return np.concatenate([tokenizer.encode(document.text) for document in documents])


def _rows(texts: Sequence[np.ndarray], multiple: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and documents, int32 [B, T]."""
    longest = 1 + max(len(text) for text in texts)
    shape = (len(texts), -(-longest // multiple) * multiple)
    tokens, segments = np.full(shape, tokenizer.pad_id, np.int32), np.zeros(shape, np.int32)
    for i, text in enumerate(texts):
        tokens[i, : len(text) + 1] = [tokenizer.bos_id, *text]
        segments[i, : len(text) + 1] = 1
    return tokens, segments


def as_settings(rule: Rule) -> dict[str, Any]:
    """The rule as a JSON value."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in rule._asdict().items()
    }
