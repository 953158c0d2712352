"""The sidecar of a tokenizer: NAME.json beside NAME.model says what the model is and how it was made."""

import json
from importlib.resources.abc import Traversable
from typing import Any

from hope_jax.core.errors import DataError

KIND = "hope_jax.tokenizer"
"""What tells a sidecar from another file of its name, such as the tokenizer.json of other libraries."""


def sidecar_name(model: str) -> str:
    """Name of the sidecar of a model's file."""
    return model.removesuffix(".model") + ".json"


def read_sidecar(path: Traversable) -> dict[str, Any] | None:
    """What a sidecar holds; None where there is no file, or one of another kind.

    Raises:
        DataError: the file cannot be read, is not JSON, or has no digest.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so that the model beside it cannot be checked; "
            "bring it back, or remove it to use the model unchecked"
        ) from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        return None
    if not isinstance(record.get("sha256"), str):
        raise DataError(f"{path}: has no sha256; bring it back, or train the tokenizer again")
    return record


def check_digest(model: str, found: str, wanted: str, said_by: str) -> None:
    """Compares hex SHA-256 digests of a model, whatever their case.

    Args: the model's name, its digest, the one wanted, and who wants it.

    Raises:
        DataError: they differ.
    """
    if found != wanted.lower():
        raise DataError(
            f"{model}: its sha256 is {found}, but {said_by} says {wanted}; the file is damaged or is another "
            "model: bring back the right one, or train it again"
        )
