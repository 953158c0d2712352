"""Segments: texts of different kinds, equal bytes of each, that the model was not trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.core.paths import as_path, files_in
from hope_jax.data.corpus import EMBEDDED, load_documents, parse_documents, split_documents
from hope_jax.evals.suite.options import listed, whole_number

LEAST_BYTES = 256
SEGMENT_BYTES = 65536
_PROBES, _PROBE, _SHARE = 64, 40, 0.05
"""A passage counts as seen if more than this share of so many probes, of so many characters each, stand in
the training text."""


class Segment(NamedTuple):
    """name: of the file. text: a passage of it. checked: it was held against the text of training."""

    name: str
    text: str
    checked: bool


def load_segments(options: Mapping[str, Any], config: ExperimentConfig, seed: int) -> list[Segment]:
    """The segments that options ask for, in order; a passage of each that begins where the seed says.

    options: `segments`: folder of `.txt` files, one a segment, or "embedded" (default): the held-out
    documents of the embedded corpus by source. `segment_names`: which, in which order; default all by name.
    `segment_bytes`: of each (default 65,536), or those of the shortest if that has fewer.

    If the run was trained on the embedded corpus, passages that stand in its training documents are passed
    over.

    Raises:
      ConfigError: an option that is no such thing, or names that are not there.
      DataError: the folder or a file cannot be read, or a text has no passage that training has not seen.
    """
    source = str(options.get("segments", EMBEDDED))
    size = whole_number(options, "segment_bytes", SEGMENT_BYTES, least=LEAST_BYTES)
    texts = _embedded() if source == EMBEDDED else _folder(as_path("segments", source))
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
    size = min(size, sizes[shortest])
    seen = _training_text(config)
    return [
        Segment(name, _passage(name, texts[name], size, seen, [seed, i]), seen is not None)
        for i, name in enumerate(names)
    ]


def blocks(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Consecutive blocks int32 [length] of tokens [n]; an incomplete last one is left out."""
    count = len(tokens) // length
    return list(np.asarray(tokens[: count * length], np.int32).reshape(count, length))


def _embedded() -> dict[str, str]:
    held = split_documents(load_documents(EMBEDDED))[1]
    sources = sorted({document.source for document in held})
    return {
        source.removesuffix(".txt"): "\n".join(d.text for d in held if d.source == source)
        for source in sources
    }


def _folder(folder: Path) -> dict[str, str]:
    paths = files_in(folder, "*.txt") if folder.is_dir() else []
    if not paths:
        raise DataError(f"segments={folder}: want a folder that holds .txt files, one a segment")
    texts = {}
    for path in paths:
        try:
            documents = parse_documents(path.name, path.read_bytes(), "segments")
        except OSError as error:
            raise DataError(f"segments={folder}: {path.name} cannot be read ({error.strerror})") from None
        if documents:
            texts[path.stem] = "\n".join(document.text for document in documents)
    if not texts:
        raise DataError(f"segments={folder}: its .txt files are empty; put text in them")
    return texts


def _training_text(config: ExperimentConfig) -> str | None:
    """What a run on the embedded corpus was trained on; None for other runs."""
    if config.data.mixture or config.data.source != EMBEDDED:
        return None
    return _plain("\n".join(d.text for d in split_documents(load_documents(EMBEDDED))[0]))


def _passage(name: str, text: str, size: int, seen: str | None, seed: Sequence[int]) -> str:
    raw = text.encode()
    for place in np.random.default_rng(seed).permutation(len(raw) // size):
        passage = raw[place * size : (place + 1) * size].decode(errors="ignore")
        if seen is None or not _stands_in(passage, seen):
            return passage
    raise DataError(
        f"segments: no passage of {size} bytes of {name} that the run was not trained on; give another "
        "text, or fewer segment_bytes"
    )


def _stands_in(passage: str, seen: str) -> bool:
    plain = _plain(passage)
    starts = np.linspace(0, max(len(plain) - _PROBE, 0), _PROBES).astype(int)
    return float(np.mean([plain[s : s + _PROBE] in seen for s in starts])) > _SHARE


def _plain(text: str) -> str:
    return " ".join(text.split())
