"""Needle in a haystack: RULER's eight tasks over lengths, in other haystacks (docs/evals/long_context.md).

A haystack is as long as the length allows: BOS, prompt and the room for an answer are at most `length`
tokens, by binary search over its units (words of prose, lines of noise, or lines of other needles). Prose,
words of keys, splitter of sentences and random draws are not RULER's.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.data.corpus import EMBEDDED, load_documents
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.suite.run import Journal, Run, chosen, evaluation, whole_number, whole_numbers
from hope_jax.evals.tasks.curves import length_figures
from hope_jax.evals.tasks.retrieval import Draft, check_lengths, measure
from hope_jax.evals.tasks.segments import read_documents

NAME = "niah"
LENGTHS = (2048, 4096, 8192, 16384)
SAMPLES = 50
LABEL = "RULER-style, other haystack"
ANSWER_TOKENS = 128
"""Room for the answer in tokens, as in RULER."""

PROSE = ("austen.txt", "sotu.txt")
"""Files of the embedded corpus that are prose."""
_TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Dr", "St", "Col", "Esq"))
_SENTENCE_END = re.compile(rf"{_TITLES}(?:(?<=[.!?])|(?<=[.!?][\"'_)])) ")

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are",
)
_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text is",
)
_DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)

# Keys are adjective-noun of common English words, chosen for this project.
_ADJECTIVES = """
able amber ancient aqueous arctic bitter blue bold brave brief bright bronze calm careful cheerful clever
cloudy coastal cosmic crimson crisp curious damp daring deep distant dusty eager early earnest eastern
elegant emerald faint fancy fertile fierce foggy fresh frosty gentle giant glad golden graceful grand green
hasty hidden hollow honest humble icy idle ivory jolly keen kind large lavish light little lively lonely loud
lucky mellow merry mighty misty modest narrow noble northern olive orange patient pearly plain polite proud
purple quaint quick quiet rapid rare rosy round royal rustic salty scarlet sharp shiny silent silver simple
sleepy slender smooth snowy solemn southern spare steady stormy sturdy subtle sunny swift tame tender tidy
tiny upper vast velvet violet warm western wide wild windy wise witty young
"""
_NOUNS = """
acorn anchor apple arrow autumn badger barrel basket beacon bell berry blanket boat bottle bridge brook
bucket button candle canyon carpet castle cedar chapel cherry clock cloud comet compass copper coral cottage
cradle cricket crown desert dolphin donkey dragon eagle ember falcon feather fern fiddle forest fountain fox
garden glacier goose grove hammer harbor harvest hawk hedge helmet heron hill honey horizon island jacket
kettle kitten ladder lantern leaf lemon library lily lion lizard maple marble market meadow melon mill mirror
monk moon moth mountain needle oak oar ocean onion orchard otter owl paddle palace parrot pebble pepper piano
pillow pine planet plough pond poplar prairie quarry quill rabbit raven ribbon river robin rocket saddle sail
shepherd spoon sparrow spider stable station stone stork summer swallow table temple thistle thunder tiger
tower trumpet tulip tunnel turtle valley village violin walnut wagon whale willow window winter yarn
"""
ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()


class Task(NamedTuple):
    """haystack: what surrounds the needles. key, value: their kinds. keys: needles with keys of their own.
    values: needles of each key. asked: keys that the question names."""

    haystack: Literal["noise", "prose", "needles"]
    key: Literal["word", "uuid"]
    value: Literal["number", "uuid"]
    keys: int
    values: int
    asked: int

    @property
    def answers(self) -> int:
        """Values that are asked for."""
        return self.asked * self.values


TASKS = {
    "niah_single_1": Task("noise", "word", "number", 1, 1, 1),
    "niah_single_2": Task("prose", "word", "number", 1, 1, 1),
    "niah_single_3": Task("prose", "word", "uuid", 1, 1, 1),
    "niah_multikey_1": Task("prose", "word", "number", 4, 1, 1),
    "niah_multikey_2": Task("needles", "word", "number", 1, 1, 1),
    "niah_multikey_3": Task("needles", "uuid", "uuid", 1, 1, 1),
    "niah_multivalue": Task("prose", "word", "number", 1, 4, 1),
    "niah_multiquery": Task("prose", "word", "number", 4, 1, 4),
}


class Prose:
    """Running text whose words are the units of haystacks; it goes on from its end to its beginning."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Args: documents, which are joined in order; their white space becomes single spaces."""
        self._words = " ".join(texts).split()

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the words."""
        return hashlib.sha256(" ".join(self._words).encode()).hexdigest()

    @cached_property
    def _starts(self) -> np.ndarray:
        """Indices of words with which sentences begin."""
        lengths = [len(s.split()) for s in split_sentences(" ".join(self._words))]
        return np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def words(self, start: float, count: int) -> str:
        """`count` words from the beginning of a sentence; start in [0, 1): which one."""
        at = int(self._starts[int(start * len(self._starts))])
        rounds = (at + count) // len(self._words) + 1
        return " ".join((self._words * rounds)[at : at + count])


def load_prose(source: str | None) -> Prose:
    """The prose of the embedded corpus (None), or of a text file or folder. Raises: as `read_documents`."""
    if source is not None:
        return Prose([d.text for d in read_documents("niah_haystack", source)])
    return Prose([d.text for d in load_documents(EMBEDDED) if d.source in PROSE])


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without line breaks; joined by spaces they are the text."""
    return _SENTENCE_END.split(text)


def _asked(run: Run) -> tuple[dict[str, Any], Sequence[Sequence[Draft]]]:
    """The settings, and the samples of each length and task. Raises: ConfigError also for lengths and answers
    that one of them has no room for."""
    tasks = chosen(run.options, "niah_tasks", TASKS)
    lengths = whole_numbers(run.options, "niah_lengths", LENGTHS)
    samples = whole_number(run.options, "niah_samples", SAMPLES)
    room = whole_number(run.options, "niah_answer_tokens", ANSWER_TOKENS)
    prose, tokenizer = load_prose(run.options.get("niah_haystack")), run.subject.trained.tokenizer
    groups = [
        [_Draft(tokenizer, run.seed, t, n, i, prose) for i in range(min(samples, run.limit or samples))]
        for n in lengths
        for t in tasks
    ]
    for drafts in groups:
        most = max(len(tokenizer.encode(" " + ", ".join(draft.answers))) for draft in drafts)
        if most > room:
            raise ConfigError(
                f"niah_answer_tokens={room}: too few for the answers of {drafts[0].task_name}: want at least "
                f"{most}"
            )
    check_lengths(NAME, groups, room)
    settings = {
        "tasks": list(tasks),
        "lengths": list(lengths),
        "samples": samples,
        "answer_tokens": room,
        "haystack": prose.digest,
        "label": LABEL,
    }
    return settings, groups


@evaluation(NAME, _asked, length_figures)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], groups: Sequence[Sequence[Draft]]
) -> dict[str, Any]:
    """Metrics "task@length/field/arm" with the fields of `retrieval.FIELDS`."""
    notes = [f"{LABEL}: prose of niah_haystack, and keys' words of ours."]
    if not run.options.get("niah_haystack"):
        notes = [
            f"{LABEL}: prose of the embedded corpus, and keys' words of ours.",
            "For a model that was trained on the embedded corpus this prose is training text; "
            f"this one's data.source is {run.subject.config.data.source!r}.",
        ]
    return measure(run, journal, groups, settings["answer_tokens"]) | {"notes": notes}


class _Draft(Draft):
    """Sample `index` of the task `name`; only the size of its haystack and its distractor depend on the
    tokenizer too."""

    def __init__(
        self, tokenizer: Tokenizer, seed: int, name: str, length: int, index: int, prose: Prose
    ) -> None:
        super().__init__(tokenizer, seed, name, length, index)
        self.task, self.prose = TASKS[name], prose
        task, rng = self.task, self.generator("")
        keys = _distinct(rng, task.key, task.keys)
        values = _distinct(rng, task.value, task.keys * task.values)
        given = [values[i * task.values : (i + 1) * task.values] for i in range(task.keys)]
        self.needles = [self._needle(k, v) for k, of_key in zip(keys, given, strict=True) for v in of_key]
        rng.shuffle(self.needles)
        self.answers = tuple(v for of_key in given[: task.asked] for v in of_key)
        self.taken = {*keys, *values}
        self.start = float(rng.random())
        depths = rng.choice(_DEPTHS, len(self.needles), replace=False)
        self.depths = np.sort(depths) / 100 if task.haystack == "prose" else rng.random(len(self.needles))
        self.others = np.random.default_rng(rng.integers(2**63))
        self.lines: list[str] = []
        kind = task.value + ("s" if task.answers > 1 else "")
        before, after = _MANY if task.answers > 1 else _ONE
        self.before = before.format(kind=kind)
        asked = keys[: task.asked]  # joined as RULER does: "a", "a, and b", "a, b, and c"
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        self.after = after.format(kind=kind, query=query)

    def value(self, rng: np.random.Generator) -> str:
        return _draw(rng, self.task.value)

    def context(self, units: int) -> str:
        if self.task.haystack == "prose":
            pieces, joint = split_sentences(self.prose.words(self.start, units)), " "
        else:
            pieces, joint = [NOISE] * units if self.task.haystack == "noise" else self._other(units), "\n"
        places = sorted(int(depth * len(pieces)) for depth in self.depths)
        for place, needle in reversed(list(zip(places, self.needles, strict=True))):
            pieces.insert(place, needle)
        return joint.join(pieces)

    def _other(self, count: int) -> list[str]:
        """The first lines of an endless list of needles with other keys and values than this sample's."""
        while len(self.lines) < count:
            key, value = _draw(self.others, self.task.key), _draw(self.others, self.task.value)
            if not {key, value} & self.taken:
                self.lines.append(self._needle(key, value))
        return self.lines[:count]

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=f"{self.task.value}s", key=key, value=value)


def _distinct(rng: np.random.Generator, kind: str, count: int) -> list[str]:
    found: dict[str, None] = {}  # draws that differ from each other
    while len(found) < count:
        found[_draw(rng, kind)] = None
    return list(found)


def _draw(rng: np.random.Generator, kind: str) -> str:
    if kind == "number":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuid":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]}-{NOUNS[rng.integers(len(NOUNS))]}"
