"""The form of a command that a test runs, and of what it leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[[str], Done]


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
