"""A checkpoint as a model that streams: configuration, tokenizer, parameters and memories that fit."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import __version__
from hope_jax.config import assemble
from hope_jax.config.experiment import DataConfig, ExperimentConfig
from hope_jax.core.errors import CheckpointError
from hope_jax.core.files import TOKENIZER_FILE
from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer, open_tokenizer
from hope_jax.learning.sampling import roomy
from hope_jax.learning.stream import Stream, Streamer
from hope_jax.storage import arrays
from hope_jax.storage.stored import LoadedCheckpoint


class Trained(NamedTuple):
    """A trained model. path: of its checkpoint. fast: the memories that training left where they outlive
    its steps (`memory.lifetime=persistent`), else None."""

    path: Path
    tokenizer: Tokenizer
    streamer: Streamer
    params: PyTree
    fast: PyTree | None


def load_tokenizer(checkpoint: Path, digest: str, data: DataConfig) -> Tokenizer:
    """The tokenizer of a checkpoint's run: a release bundle's own, which lies beside `checkpoints/`, else the
    one that `data` names. digest: of the one that the run was trained with.
    Raises: CheckpointError: it is another one. DataError: it cannot be read."""
    kept = checkpoint.parent.parent / TOKENIZER_FILE
    tokenizer = Tokenizer.load(str(kept)) if kept.is_file() else open_tokenizer(data)
    if tokenizer.sha256 != digest:
        raise CheckpointError(
            f"{checkpoint} was trained with another tokenizer (digest {digest}, that of "
            f"data.tokenizer={tokenizer.name!r} is {tokenizer.sha256}): bring back the one it names"
        )
    return tokenizer


def prepare(loaded: LoadedCheckpoint, config: ExperimentConfig) -> Trained:
    """The model of a checkpoint that was loaded with ("params", "fast"); config: its own.
    Raises: CheckpointError: arrays that do not fit the configuration, or another tokenizer than the run's.
    DataError: the tokenizer cannot be read."""
    tokenizer = load_tokenizer(loaded.path, loaded.meta["tokenizer_digest"], config.data)
    streamer = assemble.streamer(config)
    params = _fit(loaded, "params", jax.eval_shape(streamer.model.init_params, jax.random.key(0)))
    fast = None
    if config.memory.lifetime == "persistent":
        fast = _fit(loaded, "fast", jax.eval_shape(lambda p: streamer.model.init_fast_state(p, 1), params))
    return Trained(loaded.path, tokenizer, streamer, params, fast)


def read_text(model: Trained, stream: Stream, text: str, *, targets: bool, more: int = 0) -> Stream:
    """The stream, of batch size one, after a text in the tokens and documents of the data pipeline: BOS
    begins a document, and after EOS another begins (under `reset_at_document` at the next online chunk); else
    the text goes on in the document of the last token.

    targets: the text's tokens are targets. more: tokens to come, for which there shall be room.
    """
    streamer, tokenizer = model.streamer, model.tokenizer
    tokens = [int(token) for token in tokenizer.encode(text)]
    last, document, padding = tokenizer.eos_id, 0, 0
    if stream.position:
        last, document = (int(row[0, -1]) for row in stream.recent[:2])
    if last == tokenizer.eos_id:
        tokens, document = [tokenizer.bos_id, *tokens], document + 1
        if streamer.model.spec.memory.reset_at_document:
            padding = -stream.position % streamer.rule.chunk_size
    row = np.asarray([tokenizer.pad_id] * padding + tokens, np.int32)[None]
    stream = streamer.resized(stream, roomy(streamer, stream.position + row.shape[1] + more))
    mask, documents = np.full(row.shape, targets), np.full_like(row, document)
    documents[:, :padding] = 0
    return streamer.feed(model.params, stream, row, segment_ids=documents, target_mask=mask)[1]


def _fit(loaded: LoadedCheckpoint, field: str, like: PyTree) -> PyTree:
    try:
        found = arrays.restore(like, arrays.named(loaded.state[field]))
    except ValueError as error:
        raise CheckpointError(
            f"{loaded.path} does not fit its own configuration: {field}.{error}; it was written "
            f"with hope_jax {loaded.meta['versions'].get('hope_jax')}, this is {__version__}"
        ) from error
    return jax.tree.map(jnp.asarray, found)
