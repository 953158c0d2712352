"""Text to token ids and back: a sentencepiece model, the embedded one or any other; and the symbols of a
synthetic task, in which no text can be told."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import sentencepiece

from hope_jax.core.errors import DataError

if TYPE_CHECKING:
    from hope_jax.config.experiment import DataConfig

EMBEDDED = "embedded"
EMBEDDED_MODEL = "unigram_1024.model"
KIND = "hope_jax.tokenizer"
"""What tells a sidecar, NAME.json beside NAME.model, from another file of its name, such as the
tokenizer.json of other libraries."""

# Sentencepiece writes a space as this character and reads it back as a space, so the character itself is
# spelt in bytes to survive. Another one that the model spells in bytes stands for it in the text: were the
# text cut there, each part would be a text of its own to a model that begins one with a space.
_SPACE_MARK = "▁"
_STAND_INS = range(0xE000, 0xF900)  # for private use, of three bytes as the mark
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """A sentencepiece model with fixed special ids; made by `Tokenizer.load`.

    With the embedded model `decode(encode(text)) == text` for every text: what the vocabulary lacks is spelt
    in bytes. BOS and EOS are never produced from text; the pipeline puts them around documents.
    Has `model` and `sha256`, the serialized model and its hex digest; `vocab_size`, ids being 0 to that less
    one; `bos_id` and `eos_id`, put before and after every document; `unk_id`, of what can neither be told in
    pieces nor spelt in bytes; and `pad_id`, which fills rows: EOS where the model has none, as segment ids
    mark padding, not this.
    """

    def __init__(self, model: bytes, name: str) -> None:
        """Args: the serialized sentencepiece model, and the name to use in errors. Raises: DataError."""
        self._processor = processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(model) if model else False
        except (RuntimeError, OSError):
            loaded = False
        where = f"data.tokenizer={name!r}"
        if not loaded:
            raise DataError(f"{where}: not a sentencepiece model ({len(model)} bytes); {_REMEDY}")
        self.name, self.model, self.sha256 = name, model, hashlib.sha256(model).hexdigest()
        self.vocab_size = int(processor.get_piece_size())
        self.bos_id, self.eos_id = int(processor.bos_id()), int(processor.eos_id())
        self.unk_id, pad = int(processor.unk_id()), int(processor.pad_id())
        self.pad_id = pad if pad >= 0 else self.eos_id
        for role, token in (("BOS", self.bos_id), ("EOS", self.eos_id)):
            if token < 0:
                raise DataError(f"{where}: the model has no {role} token; train it with one")

    @classmethod
    def load(cls, source: str = EMBEDDED) -> "Tokenizer":
        """Reads a tokenizer ("embedded", or a sentencepiece `.model` file), and holds it against its sidecar
        if there is one. Raises: DataError: the file is missing, is no such model, lacks BOS or EOS, or has
        another digest than `train_tokenizer` wrote beside it."""
        model, wanted, sidecar = read_model(source)
        if wanted is not None:
            check_digest(f"data.tokenizer={source!r}", model, wanted, str(sidecar))
        return cls(model, source)

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [n] of a text, without BOS and EOS. Raises: DataError: it holds a lone surrogate,
        which no UTF-8 text can."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"character {error.start} is a lone surrogate"
            raise DataError(f"text: {problem}; give valid Unicode") from None
        mark = self._in_bytes(_SPACE_MARK)
        if _SPACE_MARK not in text or mark is None:
            return np.asarray(self._processor.encode(text), np.int32)
        known = self._processor.piece_to_id
        other = next(c for c in map(chr, _STAND_INS) if c not in text and known(c) == self.unk_id)
        ids, stand_in = self._processor.encode(text.replace(_SPACE_MARK, other)), self._in_bytes(other)
        for i in range(len(ids)):
            if ids[i : i + len(mark)] == stand_in:
                ids[i : i + len(mark)] = mark
        return np.asarray(ids, np.int32)

    def document(self, text: str) -> np.ndarray:
        """Token ids int32 [n] of a document: BOS, the text, EOS."""
        return np.concatenate([[self.bos_id], self.encode(text), [self.eos_id]], dtype=np.int32)

    def _in_bytes(self, character: str) -> list[int] | None:
        """The ids that spell a character; None if the model has no bytes."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return ids if all(self._processor.is_byte(i) for i in ids) else None

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of token ids [n]. Special ids are left out. Bytes that are not UTF-8 and ids beyond the
        vocabulary (which a model with a larger head can sample) become U+FFFD."""
        runs: list[list[int]] = [[]]
        for token in ids:
            if 0 <= (i := int(token)) < self.vocab_size:
                runs[-1].append(i)
            else:
                runs.append([])
        first = self._processor.decode(runs[0]) if runs[0] else ""
        return _REPLACEMENT.join([first, *map(self._inside, runs[1:])])

    def _inside(self, ids: list[int]) -> str:
        """The text of token ids that do not begin one: a space that a model puts before a text stays."""
        token, text = self._any_word
        return str(self._processor.decode([token, *ids])).removeprefix(text) if ids else ""

    @cached_property
    def _any_word(self) -> tuple[int, str]:
        """A token whose text alone is no white space and no byte, and that text."""
        other = (self._processor.is_byte, self._processor.is_unknown, self._processor.is_control)
        plain = (i for i in range(self.vocab_size) if not any(kind(i) for kind in other))
        return next((i, text) for i in plain if (text := self._processor.decode([i])).strip())

    def decode_stream(self, context: Iterable[int] | np.ndarray, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` after `context`, piece by piece as they come; a character that several tokens
        spell comes with its last one."""
        held = [int(i) for i in context]
        shown = self.decode(held)
        for token in ids:
            held.append(int(token))
            text = self.decode(held)
            if not text.startswith(shown):
                shown = shown.rstrip(_REPLACEMENT)  # the token goes on with a character that was unfinished
            new = text.rstrip(_REPLACEMENT)[len(shown) :]
            yield new
            shown += new
            last = self.decode(held[-1:])
            if last and _REPLACEMENT not in last:
                held, shown = held[-1:], last
        yield self.decode(held)[len(shown) :]

    def characters_in_bytes(self, ids: np.ndarray) -> int:
        """How many characters the token ids [n] of a text spell in bytes: as many as bytes that begin one."""
        found = {int(i): int(n) for i, n in zip(*np.unique(ids, return_counts=True), strict=True)}
        names = {i: self._processor.id_to_piece(i) for i in found if self._processor.is_byte(i)}
        return sum(found[i] for i, name in names.items() if int(name[3:5], 16) & 0xC0 != 0x80)

    @cached_property
    def byte_counts(self) -> np.ndarray:
        """int64 [vocab_size]: UTF-8 bytes of text that each id stands for; none for special ids."""
        every, processor = list(range(self.vocab_size)), self._processor
        pieces = (piece.replace(_SPACE_MARK, " ").encode() for piece in processor.id_to_piece(every))
        special = np.array(processor.is_control(every)) | np.array(processor.is_unknown(every))
        return np.where(processor.is_byte(every), 1, np.where(special, 0, [len(p) for p in pieces]))


_REMEDY = f"give {EMBEDDED!r} or the path of a sentencepiece .model file"


def read_model(source: str) -> tuple[bytes, str | None, Traversable]:
    """A serialized model as it is, the digest that its sidecar says (None without one), and that one's place.
    Raises: DataError: the model cannot be read, or there is a sidecar that cannot, or that has no digest."""
    path: Traversable = Path(source)
    if source == EMBEDDED:
        path = resources.files("hope_jax.data") / "assets" / EMBEDDED_MODEL
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"data.tokenizer={source!r}: {error.strerror or error}; {_REMEDY}") from None
    sidecar = Path(str(path)).with_name(path.name.removesuffix(".model") + ".json")
    try:
        record = json.loads(sidecar.read_bytes())
    except FileNotFoundError:
        return model, None, sidecar
    except (OSError, ValueError) as error:
        raise DataError(
            f"{sidecar}: cannot be read ({error}), so that the model beside it cannot be checked; "
            "bring it back, or remove it to use the model unchecked"
        ) from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        return model, None, sidecar
    if not isinstance(record.get("sha256"), str):
        raise DataError(f"{sidecar}: has no sha256; bring it back, or train the tokenizer again")
    return model, record["sha256"], sidecar


def check_digest(name: str, model: bytes, wanted: str, said_by: str) -> None:
    """Raises: DataError if the hex SHA-256 of a model is not the one wanted, in whatever case."""
    found = hashlib.sha256(model).hexdigest()
    if found != wanted.lower():
        raise DataError(
            f"{name}: its sha256 is {found}, but {said_by} says {wanted}; the file is damaged or is another "
            "model: bring back the right one, or train it again"
        )


class SymbolTokenizer(Tokenizer):
    """Stands where a run's tokenizer does, under `data.source="synthetic:..."`. `decode` names the symbols;
    whatever asks for text, or for a document's ends, is refused. sha256: of the names, in order. model:
    empty, as there is no file."""

    def __init__(self, source: str, symbols: tuple[str, ...]) -> None:
        self.name, self.model = source, b""
        self.sha256 = hashlib.sha256("\n".join((source, *symbols)).encode()).hexdigest()
        self._symbols, self.vocab_size = symbols, len(symbols)
        self.pad_id = 0  # any will do, as segment ids mark padding

    def encode(self, text: str) -> np.ndarray:
        """Raises: DataError."""
        self._refuse()

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The names of token ids [n], with spaces between; ids beyond them become U+FFFD."""
        names = dict(enumerate(self._symbols))
        return " ".join(names.get(int(i), _REPLACEMENT) for i in ids)

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("bos_id", "eos_id", "unk_id"):
            self._refuse()
        raise AttributeError(name)

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"the model was trained on symbols (data.source={self.name!r}), not on text; use "
            "python -m hope_jax.evals.suite --only=synthetic, or a checkpoint that was trained on text"
        )


def open_tokenizer(data: "DataConfig") -> Tokenizer:
    """The tokenizer that `data` names; of a synthetic task its symbols. Raises: ConfigError: a synthetic task
    that cannot be; DataError: the tokenizer cannot be read."""
    from hope_jax.data.synthetic import find_task  # which brings JAX; those who build shards need none

    task = find_task(data.source, data.task_options, data.seq_len)
    return Tokenizer.load(data.tokenizer) if task is None else SymbolTokenizer(data.source, task.symbols())
