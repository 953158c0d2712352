"""The tokenizer of a synthetic task: its symbols have names, and no text can be told in them."""

import hashlib
from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from hope_jax.config.experiment import DataConfig
from hope_jax.core.errors import DataError
from hope_jax.data.synthetic import find_task
from hope_jax.data.tokenizer import Tokenizer


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
        return " ".join(names.get(int(i), "\ufffd") for i in ids)

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("bos_id", "eos_id", "unk_id"):
            self._refuse()
        raise AttributeError(name)

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"the model was trained on symbols (data.source={self.name!r}), not on text; use "
            "python -m hope_jax.evals.suite --only=synthetic, or a checkpoint that was trained on text"
        )


def open_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that `data` names; of a synthetic task its symbols. Raises: ConfigError: a synthetic task
    that cannot be; DataError: the tokenizer cannot be read."""
    task = find_task(data.source, data.task_options, data.seq_len)
    return Tokenizer.load(data.tokenizer) if task is None else SymbolTokenizer(data.source, task.symbols())
