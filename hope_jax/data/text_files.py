"""How the bytes of text files are read, of whatever format: UTF-8, JSON that is strict.

Where a file begins, UTF-8's byte order mark, which tools on Windows write, is taken off; a mark further on
(of files that were joined) is text. The marks of UTF-16 and UTF-32 say that a file is none of ours.
"""

import codecs
import json
from typing import Any, NoReturn

_OTHERS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),  # before UTF-16's, which begins one of them
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)


class NotUtf8Error(ValueError):
    """Bytes that are no UTF-8 text. The message says what they are, and goes on from a file's name."""


def begin(head: bytes) -> bytes:
    """The bytes with which a file begins (all, or at least four), without UTF-8's byte order mark. Raises:
    NotUtf8Error: the mark of another encoding."""
    for name, marks in _OTHERS:
        if head.startswith(marks):
            raise NotUtf8Error(f"is {name}, as its byte order mark says, not UTF-8")
    return head.removeprefix(codecs.BOM_UTF8)


def decode(raw: bytes) -> str:
    """The text of a whole file. Raises: NotUtf8Error."""
    begin(raw)
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise NotUtf8Error(f"is not UTF-8 ({byte})") from None


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. NaN and Infinity, which JSON does not have, are refused. Raises: ValueError: no
    JSON; UnicodeDecodeError: bytes that are not UTF-8."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value; null is")
