"""What an evaluation has found so far, on disk: a killed one goes on where it stopped."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hope_jax.core.errors import OutputError

logger = logging.getLogger("hope_jax.evals")


def path_of(folder: Path, name: str) -> Path:
    """The file of an evaluation's journal."""
    return folder / f"{name}.partial.jsonl"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Journal:
    """Records by key in a file, a line each; the first line tells what they belong to.

    A file of other settings, or one that cannot be read, is begun anew; a last line that a kill cut short is
    dropped. Each line also tells the seconds that all starts have taken up to it. began: of this start, by
    `time.monotonic`; None: now.

    Raises:
      OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], began: float | None = None) -> None:
        self.path, self._began = path, time.monotonic() if began is None else began
        head = {"settings": settings_digest(settings)}
        lines = _read(path)
        kept = lines[1:] if lines and lines[0] == head else []
        self._records: dict[str, dict[str, Any]] = {line["key"]: line["record"] for line in kept}
        self._before = max((float(line.get("seconds", 0.0)) for line in kept), default=0.0)
        if kept:
            logger.info("%s: %d records are there already", path.name, len(self._records))
        with self._writing():
            # Written anew as a whole: what follows a line that was cut short would be lost with it.
            part = path.with_name(path.name + ".new")
            part.write_text("".join(json.dumps(row) + "\n" for row in [head, *kept]))
            part.replace(path)
            self._file = path.open("a")

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, None if there is none yet."""
        return self._records.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keeps the record of a key (a JSON value). Raises: OutputError."""
        self._records[key] = record
        with self._writing():
            line = {"key": key, "record": record, "seconds": round(self.seconds(), 3)}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def seconds(self) -> float:
        """What this start and those before it have taken; of one that was killed, up to its last record."""
        return self._before + time.monotonic() - self._began

    def close(self) -> None:
        """The records stay on disk, until the result that they are part of is written."""
        self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"--out: {self.path} cannot be written ({error.strerror}); make room or give write permission"
            ) from None


def _read(path: Path) -> list[Any]:
    """The lines of a journal, up to the first that is no JSON."""
    lines: list[Any] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in path.read_text().splitlines():
            lines.append(json.loads(line))
    if any(not isinstance(line, dict) or not {"key", "record"} <= set(line) for line in lines[1:]):
        return []
    return lines
