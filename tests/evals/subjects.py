"""Small subjects of evaluations; one a variant, so that each compiles once."""

import json
import tempfile
from functools import cache
from pathlib import Path

from hope_jax.evals.reading.subject import Subject, open_subject
from tests.checkpoints import save_small, small_config


@cache
def subject(variant: str = "hope_attention", scope: str = "example", dtype: str = "float32") -> Subject:
    """Memories that write enough to be seen."""
    config = small_config(
        model={"block_variant": variant, "num_layers": 2, "local_conv_window": 4},
        titan={"level": {"lr": 0.01}},
        self_modifying_titans={"chunk_size_memory": 32, "eta_scale": 0.01},
        memory={"scope": scope},
        train={"steps": 2, "compute_dtype": dtype},
    )
    folder = Path(tempfile.mkdtemp())
    return open_subject(save_small(folder / "small", config))


def as_if_slow(out: Path, seconds: float = 1e6) -> float:
    """Lets the journal of a folder say that its last record came after so many seconds, which it returns."""
    (path,) = out.glob("*.partial.jsonl")
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({**json.loads(last), "seconds": seconds})]) + "\n")
    return seconds
