"""What a configuration trains on and is evaluated on: texts, shards or a synthetic task, checked."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hope_jax.config.chunks import document_multiple
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.types import Batch
from hope_jax.data import mixture, pipeline
from hope_jax.data.batches import Stream, TrainIterator, fixed_batches
from hope_jax.data.corpus import load_documents, split_documents
from hope_jax.data.mixture import Source, check_sources, find_sources
from hope_jax.data.synthetic import find_task, rows
from hope_jax.data.tokenizer import Tokenizer

logger = logging.getLogger("hope_jax.data")


@dataclass(frozen=True)
class Inputs:
    """Batches of a configuration. Made by `open_inputs`. training, held_out: give the rows of that side.
    sources: of shards; none: of texts or a synthetic task."""

    config: ExperimentConfig
    tokenizer: Tokenizer
    training: Callable[..., Stream]
    held_out: Callable[..., list[Batch]]
    sources: Sequence[Source] = ()

    def about(self) -> list[dict[str, str | float | int]]:
        """Of each source of shards what must not be lost: weight, origin, licence, a digest of its shards'
        digests. None of texts."""
        return [
            {
                "name": source.name,
                "weight": source.weight,
                "origin": source.manifest.origin,
                "licence": source.manifest.licence,
                "train_tokens": sum(file.tokens for file in source.manifest.files["train"]),
                "shards_sha256": source.digest(),
            }
            for source in self.sources
        ]

    def train_iterator(self, process_index: int = 0, process_count: int = 1) -> TrainIterator:
        """The training batches of a process, from batch `train.step_offset` on. Raises: DataError."""
        data, train = self.config.data, self.config.train
        read = mixture.epochs(self.sources, data.seq_len, train.steps, data.batch_size)
        for source in self.sources:
            count = len(source.rows("train", data.seq_len))
            logger.info(
                "%s: weight %g, %d rows, read %.3g times in %d steps",
                *(source.name, source.weight, count, read[source.name], train.steps),
            )
        return TrainIterator(
            self.training(seq_len=data.seq_len, batch_size=data.batch_size, seed=train.seed),
            batch_size=data.batch_size,
            process_index=process_index,
            process_count=process_count,
            prefetch=data.prefetch,
            workers=data.workers,
            start_batch=train.step_offset,
        )

    def eval_batches(self) -> list[Batch]:
        """The held-out batches, int32 [B, T], at most `eval.batches` (0: all). Raises: DataError."""
        data, most = self.config.data, self.config.eval.batches
        chosen = self.held_out(seq_len=data.seq_len, batch_size=data.batch_size, max_batches=most)
        batches = fixed_batches(chosen, data.batch_size, self.tokenizer.pad_id)
        if self.sources and len(batches) < most:
            logger.info(
                "eval.batches=%d: the held-out shards have %d in the mixture's proportions",
                *(most, len(batches)),
            )
        return batches


def open_inputs(config: ExperimentConfig, tokenizer: Tokenizer) -> Inputs:
    """Finds the texts or shards that `data.source` and `data.mixture` name, and checks them. All processes
    do: each may have a disk of its own. Raises: ConfigError: a synthetic task that cannot be; DataError: what
    is there cannot be used."""
    data, multiple = config.data, document_multiple(config)
    task = find_task(data.source, data.task_options, data.seq_len)
    if task is not None:
        held_out = partial(rows.held_out_rows, task, seed=config.train.seed)
        return Inputs(config, tokenizer, partial(rows.training_rows, task), held_out)
    if sources := find_sources(data.source, data.mixture, os.environ):
        check_sources(
            sources, tokenizer, seq_len=data.seq_len, document_multiple=multiple, digests=data.verify_shards
        )
        training = partial(mixture.training_rows, sources)
        return Inputs(config, tokenizer, training, partial(mixture.held_out_rows, sources), sources)
    train, held = split_documents(load_documents(data.source))
    packed: dict[str, Any] = {"tokenizer": tokenizer, "document_multiple": multiple}
    packing = partial(pipeline.training_rows, train, **packed)
    return Inputs(config, tokenizer, packing, partial(pipeline.held_out_rows, held, **packed))
