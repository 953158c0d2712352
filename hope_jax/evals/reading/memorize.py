"""Test-time memorization: a text is read, what it wrote is kept, and an item is scored with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.types import PyTree
from hope_jax.data.corpus import EMBEDDED, load_documents, split_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading.scoring import padded, up
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Streamer
from hope_jax.memory.state import WriteStats
from hope_jax.models.lm import Fast, HopeModel, ReadOutput

_SEGMENT = 16
"""Online chunks of a call: the logits that nobody needs are few."""
_LARGEST = ("write_norm", "delta_norm")
_COUNTED = (
    "updates_applied", "chunk_tokens", "grad_norm", "surprise_value", "write_clip_hits", "delta_clip_hits",
    *_LARGEST,
)  # fmt: skip
"""What the padding of a batch has no part in."""

Updates = dict[str, dict[str, np.ndarray]]
""" "memory/level" -> name -> float [B]: what writes have done, of `WriteStats` over layers and readings;
sums, but of `_LARGEST` the largest."""


class Rule(NamedTuple):
    """steps: times that a text is read. carry: False: each item starts from the trained memories ("reset");
    True: from those that the item before it left. paths, layers: see `SelectiveModel`. surprise_threshold: of
    the gate; None: the model's own. use_correct_answer: the text holds the right answer, a leak by design."""

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


@dataclass(frozen=True)
class SelectiveModel(HopeModel):
    """`HopeModel` whose writes to memories and layers that are not selected are undone. paths: memories
    (`titan`, `cms`, `self_mod`) or levels of a CMS; (): all. layers: from 0; (): all. A memory that writes
    while it reads is set back after each online chunk: within one it reads what it has just written."""

    paths: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    def read(self, params: PyTree, fast: Fast | dict[str, PyTree], *rest: Any, **named: Any) -> ReadOutput:
        """As `HopeModel.read`."""
        out = super().read(params, fast, *rest, **named)
        kept = self._kept(fast, out.fast) if isinstance(fast, tuple) else out.fast
        return out._replace(fast=kept, stats=self._counted(out.stats))

    def write(
        self, params: PyTree, norms: Any, fast: Fast, *rest: Any, **named: Any
    ) -> tuple[Fast, dict[str, Any]]:
        """As `HopeModel.write`."""
        new, stats = super().write(params, norms, fast, *rest, **named)
        return self._kept(fast, new), self._counted(stats)

    def _kept(self, old: Fast, new: Fast) -> Fast:
        """`new` where it is selected, else `old`."""

        def kept(before: dict[str, PyTree], name: str, after: PyTree) -> PyTree:
            if not _by_level(after, self.level_names()[name]):
                return after if self._written(name, name) else before[name]
            return {level: (after if self._written(name, level) else before[name])[level] for level in after}

        return tuple(
            {name: kept(before, name, state) for name, state in after.items()}
            if not self.layers or i in self.layers
            else before
            for i, (before, after) in enumerate(zip(old, new, strict=True))
        )

    def _counted(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Statistics [L, B] of what is selected, zeros of the rest."""
        layers = np.array([not self.layers or i in self.layers for i in range(self.spec.num_layers)])

        def counted(on: bool, counts: Any) -> Any:
            return jax.tree.map(lambda t: jnp.where(layers[:, None] & on, t, 0), counts)

        return {
            name: {level: counted(self._written(name, level), counts) for level, counts in levels.items()}
            for name, levels in stats.items()
        }

    def _written(self, name: str, level: str) -> bool:
        return not self.paths or name in self.paths or level in self.paths


def _by_level(state: PyTree, levels: Iterable[str]) -> bool:
    return isinstance(state, dict) and set(state) == set(levels)


def paths_of(model: HopeModel) -> tuple[str, ...]:
    """What may be selected of a model: its memories, and the levels of those that hold them one by one."""
    fast = jax.eval_shape(lambda key: model.init_fast_state(model.init_params(key), 1), jax.random.key(0))
    names: dict[str, None] = {}
    for name, levels in model.level_names().items():
        names |= dict.fromkeys([name, *(levels if _by_level(fast[0][name], levels) else ())])
    return tuple(names)


def check_selection(model: HopeModel, paths: Iterable[str], layers: Iterable[int]) -> None:
    """Raises ConfigError for a memory or a layer that the model does not have."""
    known, count = paths_of(model), model.spec.num_layers
    for path in paths:
        if path not in known:
            known_here = instead(path, known, "its own:")
            raise ConfigError(f"--memorize_paths: the model has no memory {path!r}; {known_here}")
    for layer in layers:
        if not 0 <= layer < count:
            raise ConfigError(f"--memorize_layers: {layer} is no layer; the model has 0 to {count - 1}")


def writing_streamer(subject: Subject, rule: Rule) -> Streamer:
    """The subject's streams with what a rule says of writes. Partial periods are written when a stream ends,
    so a text counts to its end, and padding after it changes nothing. A text is one context, in which no
    document begins another. Raises: ConfigError: the rule asks for what the model does not have."""
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


def as_settings(rule: Rule) -> dict[str, Any]:
    """The rule as a JSON value."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in rule._asdict().items()}


def whole_tokens(streamer: Streamer) -> int:
    """Tokens to a multiple of which texts are padded: padding ends the chunks of memories that write while
    they read, which a stream's end would leave unwritten."""
    memories = streamer.model.stream_memories().values()
    return max([streamer.rule.chunk_size, *(period for m in memories for period in m.periods().values())])


class Memorizer:
    """Writes texts into memories of a subject. Raises: as `writing_streamer`."""

    def __init__(self, subject: Subject, rule: Rule) -> None:
        self.subject, self.rule = subject, rule
        self.streamer = writing_streamer(subject, rule)

    def __call__(self, texts: Sequence[np.ndarray], fast: PyTree | None = None) -> Memorized:
        """Reads each text, after BOS, as a context of its own, `steps` times from its beginning. texts: int32
        [n] token ids of any lengths; under memory.scope=batch one. fast: memories to start from, of as many
        contexts or of one; None: those that training left. All tokens are targets. What remains of a text is
        its writes: neither attention cache nor convolutions."""
        if self.subject.shared_memory and len(texts) != 1:
            raise ValueError(f"texts: want one under memory.scope=batch, got {len(texts)}")
        trained, streamer = self.subject.trained, self.streamer
        lengths = [len(text) + 1 for text in texts]
        whole = [[trained.tokenizer.bos_id, *text] for text in texts]
        width = up(max(lengths), whole_tokens(streamer))
        tokens, segments = padded(whole, width, trained.tokenizer.pad_id)
        own = take(self.subject, trained.fast if fast is None else fast, list(range(len(texts))))
        total: Updates = {}
        for _ in range(self.rule.steps):
            state = streamer.begin(trained.params, len(texts), roomy(streamer, width), own)
            for start in range(0, width, _SEGMENT * streamer.rule.chunk_size):
                part = slice(start, start + _SEGMENT * streamer.rule.chunk_size)
                _, state = streamer.feed(trained.params, state, tokens[:, part], segments[:, part])
            result = streamer.finish(trained.params, state)
            own = result.fast
            merge(total, counts_of(result.stats, streamer.model, lengths, self.rule))
        return Memorized(own, total)


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


def counts_of(
    stats: Mapping[str, Mapping[str, WriteStats]], model: HopeModel, lengths: Sequence[int], rule: Rule
) -> Updates:
    """What one reading of texts has written, of statistics with leaves [L, B]. lengths: tokens of each
    context. Memories that write while they read write nothing in chunks of padding, which therefore do not
    count."""
    found: Updates = {}
    for memory, levels in jax.device_get(stats).items():
        for level, counts in levels.items():
            columns = {name: getattr(counts, name) for name in _COUNTED}
            found[f"{memory}/{level}"] = {
                name: value.max(0) if name in _LARGEST else value.sum(0) for name, value in columns.items()
            }
    tokens, layers = np.array(lengths, float), len(rule.layers) or model.spec.num_layers
    for name, stream_memory in model.stream_memories().items():
        readings = layers * (not rule.paths or name in rule.paths)
        for level, chunk in stream_memory.periods().items():
            found[f"{name}/{level}"]["updates_applied"] = readings * np.ceil(tokens / chunk)
            found[f"{name}/{level}"]["chunk_tokens"] = readings * tokens
    return found


def merge(total: Updates, more: Updates) -> None:
    """Adds updates to `total`."""
    for level, counts in more.items():
        known = total.setdefault(level, {})
        for name, value in counts.items():
            join = np.maximum if name in _LARGEST else np.add
            known[name] = join(known.get(name, 0.0), value)


def updates_as_json(total: Updates, i: int = 0) -> dict[str, dict[str, float]]:
    """The updates of context i."""
    return {
        level: {name: float(np.atleast_1d(values)[i]) for name, values in counts.items()}
        for level, counts in total.items()
    }
