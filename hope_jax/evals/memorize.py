"""Test-time memorization: a text is read, what it wrote is kept, and an item is scored with it (SPEC §5)."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.errors import ConfigError
from hope_jax.evals.selective import SelectiveModel, check_selection
from hope_jax.evals.subject import Subject, take
from hope_jax.learning.generate import roomy
from hope_jax.learning.stream import Streamer
from hope_jax.memory.gate import GateRule
from hope_jax.memory.self_mod import GENERATORS, MEMORY
from hope_jax.memory.state import WriteStats
from hope_jax.types import PyTree


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
    """fast: leaves [L, B, ...] ([L, ...] under memory.scope=batch). stats: "memory/level" -> name -> float
    [B], of `WriteStats` over layers and steps: sums, but of `write_norm` and `delta_norm` the largest."""

    fast: PyTree
    stats: dict[str, dict[str, np.ndarray]]


class Memorizer:
    """Writes texts into memories of a subject.

    Raises:
      ConfigError: the rule asks for what the model does not have.
    """

    def __init__(self, subject: Subject, rule: Rule) -> None:
        base = subject.trained.streamer
        if rule.steps < 1:
            raise ConfigError(f"--memorize_steps={rule.steps}: want at least 1")
        check_selection(base.model, rule.paths, rule.layers)
        spec = base.model.spec
        # Partial periods are written: a text counts to its end, and padding after it changes nothing.
        # A text is one context, whose padding begins no other.
        spec = spec._replace(flush_partial_at_end=True, reset_at_document=False)
        if rule.surprise_threshold is not None:
            spec = spec._replace(gate=GateRule(spec.gate.metric, rule.surprise_threshold))
        self.subject, self.rule = subject, rule
        self.streamer = Streamer(SelectiveModel(spec, rule.paths, rule.layers), base.rule)

    def __call__(self, texts: Sequence[np.ndarray], fast: PyTree | None = None) -> Memorized:
        """Reads each text, after BOS, as a context of its own, `steps` times from its beginning.

        texts: int32 [n] token ids of any lengths; under memory.scope=batch one. fast: memories to start
        from, of as many contexts or of one; None: those that training left. All tokens are targets. What
        remains of a text is its writes: neither attention cache nor convolutions.
        """
        if self.subject.shared_memory and len(texts) != 1:
            raise ValueError(f"texts: want one under memory.scope=batch, got {len(texts)}")
        trained, streamer = self.subject.trained, self.streamer
        tokens, segments = _rows(texts, self._multiple(), trained.tokenizer)
        own = take(self.subject, trained.fast if fast is None else fast, list(range(len(texts))))
        total: dict[str, dict[str, np.ndarray]] = {}
        for _ in range(self.rule.steps):
            state = streamer.begin(trained.params, len(texts), roomy(streamer, tokens.shape[1]), own)
            for start in range(0, tokens.shape[1], _SEGMENT * streamer.rule.chunk_size):
                part = slice(start, start + _SEGMENT * streamer.rule.chunk_size)
                _, state = streamer.feed(trained.params, state, tokens[:, part], segments[:, part])
            result = streamer.finish(trained.params, state)
            own = result.fast
            _add(total, result.stats)
        self._count_texts(total, texts)
        return Memorized(own, total)

    def _count_texts(self, total: dict[str, dict[str, np.ndarray]], texts: Sequence[np.ndarray]) -> None:
        """Counts of the memories that write while they read, without the chunks of padding, which write
        nothing."""
        model = self.streamer.model
        lengths = np.array([len(text) + 1 for text in texts], float)
        own = model.spec.self_mod
        for name in model.stream_memories():
            written = not self.rule.paths or name in self.rule.paths
            readings = self.rule.steps * len(self.rule.layers or range(model.spec.num_layers)) * written
            for level, chunk in ((GENERATORS, own.chunk_size), (MEMORY, own.chunk_size_memory)):
                counts = total[f"{name}/{level}"]
                counts["updates_applied"] = readings * np.ceil(lengths / chunk)
                counts["chunk_tokens"] = readings * lengths

    def _multiple(self) -> int:
        """Tokens to a multiple of which texts are padded: padding ends the chunks of memories that write
        while they read, which a stream's end would leave unwritten."""
        size, spec = self.streamer.rule.chunk_size, self.streamer.model.spec
        if not self.streamer.model.stream_memories():
            return size
        return max(size, spec.self_mod.chunk_size, spec.self_mod.chunk_size_memory)


_SEGMENT = 16
"""Online chunks of a call: the logits that nobody needs are few."""

_LARGEST = ("write_norm", "delta_norm")
_COUNTED = (
    "updates_applied", "chunk_tokens", "grad_norm", "surprise_value", "write_clip_hits", "delta_clip_hits",
    *_LARGEST,
)  # fmt: skip
"""What a batch's padding has no part in."""


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


def _add(total: dict[str, dict[str, np.ndarray]], stats: dict[str, dict[str, WriteStats]]) -> None:
    """Adds the statistics of one reading, leaves [L, B], to `total`."""
    for memory, levels in jax.device_get(stats).items():
        for level, counts in levels.items():
            known = total.setdefault(f"{memory}/{level}", {})
            for name in _COUNTED:
                value = getattr(counts, name)
                if name in _LARGEST:
                    known[name] = np.maximum(known.get(name, 0.0), value.max(0))
                else:
                    known[name] = known.get(name, 0.0) + value.sum(0)


def as_settings(rule: Rule) -> dict[str, Any]:
    """The rule as a JSON value."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in rule._asdict().items()
    }
