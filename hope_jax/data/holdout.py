"""Which documents are held out: a rule of their text alone."""

import hashlib

HOLDOUT_FRACTION = 0.09
# A constant of the split. This value holds out 8-10 % of the embedded corpus and of each of its sources.
SPLIT_SALT = "hope_jax.split.515"


def text_digest(text: str) -> str:
    """Hex SHA-256 of a document's text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def is_held_out(digest: str, holdout: float = HOLDOUT_FRACTION, salt: str = SPLIT_SALT) -> bool:
    """Whether the document of this `text_digest` is held out, at an expected share of `holdout`."""
    return unit_hash(salt, digest) < holdout


def unit_hash(salt: str, digest: str) -> float:
    """A number in [0, 1) that depends on both strings alone."""
    raw = hashlib.sha256(f"{salt}:{digest}".encode()).digest()
    return int.from_bytes(raw[:6], "big") / 2**48
