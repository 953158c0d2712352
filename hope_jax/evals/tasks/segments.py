"""Texts that evaluations read: a file or folder that an option names, or held-out documents of the embedded
corpus; and segments, equal bytes of texts of different kinds, that the model was not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.core.paths import as_path, files_in
from hope_jax.data.corpus import EMBEDDED, Document, load_documents, parse_documents, split_documents
from hope_jax.evals.suite.run import Run, listed, whole_number

SUFFIX = ".txt"
LEAST_BYTES = 256
SEGMENT_BYTES = 65536
_PROBES, _PROBE, _SHARE = 64, 40, 0.05
"""A passage counts as seen if more than this share of so many probes, of so many characters each, stand in
the training text."""


def read_documents(key: str, source: str) -> list[Document]:
    """The documents of a UTF-8 text file, or of the `.txt` files of a folder (any depth), in a fixed order. A
    file holds one document, or several separated by lines that hold only a form feed. Documents of white
    space alone are left out. `Document.source` is the file's path in the folder, or its name. key: the option
    that names the source, for errors. Raises: ConfigError: there is no such file or folder, or no text in it;
    DataError: a file cannot be read or is not UTF-8."""
    root = as_path(key, source)
    if not root.exists():
        raise ConfigError(
            f"{key}={source}: no such file or folder; name a text file or a folder of {SUFFIX} files"
        )
    files = {root.name: root}
    if root.is_dir():
        files = {p.relative_to(root).as_posix(): p for p in files_in(root, f"**/*{SUFFIX}")}
        if not files:
            raise ConfigError(
                f"{key}={source}: no {SUFFIX} file in this folder; text files must end in {SUFFIX}"
            )
    documents: list[Document] = []
    for name, path in files.items():
        try:
            documents += parse_documents(name, path.read_bytes(), key)
        except OSError as error:
            raise DataError(f"{key}={source}: cannot read {name}: {error.strerror or error}") from None
    if not documents:
        raise ConfigError(f"{key}={source}: there is no text in it; want at least one document")
    return documents


def held_out_texts() -> dict[str, str]:
    """The held-out documents of the embedded corpus, joined by source."""
    return _joined(split_documents(load_documents(EMBEDDED))[1])


def _joined(documents: Sequence[Document]) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.source.removesuffix(SUFFIX), []).append(document.text)
    return {name: "\n".join(parts) for name, parts in texts.items()}


class Segment(NamedTuple):
    """name: of the file. text: a passage of it. checked: it was held against the text of training."""

    name: str
    text: str
    checked: bool


class Cut(NamedTuple):
    """A segment in tokens, int32 [n], and in consecutive blocks of them; an incomplete last one is left out.
    per_byte: tokens a byte."""

    name: str
    tokens: np.ndarray
    blocks: list[np.ndarray]
    per_byte: float


def cut_segments(run: Run, least: int) -> tuple[list[Cut], dict[str, Any]]:
    """The segments that options ask for in blocks of `block_tokens` (default: of a training row), and the
    settings that say so. Raises: as `load_segments`; DataError also for one of fewer than `least` blocks."""
    length = whole_number(run.options, "block_tokens", run.subject.config.data.seq_len - 1, least=8)
    segments, cuts = load_segments(run.options, run.subject.config, run.seed), []
    for name, text, _ in segments:
        tokens = run.subject.trained.tokenizer.encode(text)
        if len(tokens) < least * length:
            raise DataError(
                f"segments: {name} has {len(tokens)} tokens, fewer than {least} blocks of {length}; give "
                "longer texts or fewer block_tokens"
            )
        cuts.append(Cut(name, tokens, blocks(tokens, length), len(tokens) / len(text.encode())))
    settings = {
        "segments": [segment.name for segment in segments],
        "segment_bytes": [len(segment.text.encode()) for segment in segments],
        "unseen_in_training": all(segment.checked for segment in segments),
        "block_tokens": length,
    }
    return cuts, settings


def blocks(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Consecutive blocks int32 [length] of tokens [n]; an incomplete last one is left out."""
    count = len(tokens) // length
    return list(np.asarray(tokens[: count * length], np.int32).reshape(count, length))


def load_segments(options: Mapping[str, Any], config: ExperimentConfig, seed: int) -> list[Segment]:
    """The segments that options ask for (docs/evals/continual.md), in order: a passage of each, of as many
    bytes, from where the seed says. Raises: ConfigError: an option that is no such thing, or names what is
    not there; DataError: a file cannot be read, or a text has no passage that training has not seen."""
    source = str(options.get("segments", EMBEDDED))
    size = whole_number(options, "segment_bytes", SEGMENT_BYTES, least=LEAST_BYTES)
    texts = held_out_texts() if source == EMBEDDED else _joined(read_documents("segments", source))
    names = listed(options, "segment_names") or tuple(sorted(texts))
    if unknown := [name for name in names if name not in texts]:
        known = instead(unknown[0], sorted(texts), "it has")
        raise ConfigError(f"segment_names: no segment {unknown[0]!r} in {source}; {known}")
    if len(set(names)) != len(names):
        raise ConfigError(f"segment_names={','.join(names)}: want each once")
    sizes = {name: len(texts[name].encode()) for name in names}
    shortest = min(names, key=sizes.__getitem__)
    if sizes[shortest] < LEAST_BYTES:
        raise DataError(
            f"segments: {shortest} in {source} has {sizes[shortest]} bytes; all segments are as long as the "
            f"shortest: want at least {LEAST_BYTES}, or leave it out with segment_names"
        )
    size, seen = min(size, sizes[shortest]), None
    if not config.data.mixture and config.data.source == EMBEDDED:
        seen = _plain("\n".join(d.text for d in split_documents(load_documents(EMBEDDED))[0]))
    passages = [_passage(name, texts[name], size, seen, [seed, i]) for i, name in enumerate(names)]
    return [Segment(name, text, seen is not None) for name, text in zip(names, passages, strict=True)]


def _passage(name: str, text: str, size: int, seen: str | None, seed: Sequence[int]) -> str:
    """Of so many bytes, from a place of the seed's. seen: what the run was trained on, if that is known."""
    raw = text.encode()
    for place in np.random.default_rng(seed).permutation(len(raw) // size):
        passage = raw[place * size : (place + 1) * size].decode(errors="ignore")
        plain = _plain(passage)
        starts = np.linspace(0, max(len(plain) - _PROBE, 0), _PROBES).astype(int)
        if seen is None or np.mean([plain[s : s + _PROBE] in seen for s in starts]) <= _SHARE:
            return passage
    raise DataError(
        f"segments: no passage of {size} bytes of {name} that the run was not trained on; give another "
        "text, or fewer segment_bytes"
    )


def _plain(text: str) -> str:
    return " ".join(text.split())
