"""Online adaptation: a stream of segments read once, by memories and by fine-tuning.

Four methods read the same blocks in the same order; what the rule of memorization says of writes holds for
all:
- `carried`: memories are written as the model reads, and go on from segment to segment;
- `reset`: memories are written, and each segment begins with those of the checkpoint;
- `no_writes`: nothing is a target, so memories that teach signals drive stay as they are;
- `adamw`: nothing is written; the slow parameters take one AdamW step after each block, at the best of a few
  learning rates by the loss on validation slices of all segments after the last one.

A block is a document: attention sees nothing before it, so only memories or parameters carry anything. The
loss on the stream is that of each block before it has taught anything but its own beginning. After each
segment all held-out slices are read without writing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.core.errors import DataError
from hope_jax.core.types import PyTree
from hope_jax.evals import statistics, transfer
from hope_jax.evals.arms.finetune import Tuned, Tuner, learning_rates
from hope_jax.evals.arms.memorized import update_statistics
from hope_jax.evals.reading import updates
from hope_jax.evals.reading.memorize import as_settings
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.reading.updates import Updates
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.options import whole_number
from hope_jax.evals.suite.run import Run, item_key, outcome, progress
from hope_jax.evals.tasks.segments import blocks, load_segments
from hope_jax.evals.tasks.transfer_figures import adaptation_figures

NAME = "adaptation"
METHODS = ("carried", "reset", "no_writes", "adamw")


class Parts(NamedTuple):
    """A segment's blocks, int32 [n] each: of the stream, for choosing a learning rate, held out.
    tokens_per_byte: of its passage."""

    name: str
    stream: list[np.ndarray]
    validation: list[np.ndarray]
    held: list[np.ndarray]
    tokens_per_byte: float


class Method(NamedTuple):
    """start: state before the stream. begin: the state a segment begins with, from the one before it. read:
    (state, blocks) -> log p of each, state, counts of writes. losses: (state, blocks) -> losses of each,
    without writing."""

    start: Callable[[], Any]
    begin: Callable[[Any], Any]
    read: Callable[[Any, Sequence[np.ndarray]], tuple[list[np.ndarray], Any, Updates]]
    losses: Callable[[Any, Sequence[np.ndarray]], list[np.ndarray]]


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome. Options: those of `segments.load_segments`; `block_tokens` (default: those of a training
    row); `learning_rates` of AdamW. `run.limit`: blocks of each slice of a segment at most.

    Raises:
      ConfigError: an option that is no such thing.
      DataError: texts that cannot be read or are too short.
    """
    started = time.monotonic()
    own, rates, parts = _asked(run)
    journal, reader = run.journal(NAME, own, started), Reader(run.subject, run.memorize)
    found, costs = _all_methods(run, journal, reader, parts, rates)
    result = outcome(
        run,
        NAME,
        settings=own,
        seconds=journal.seconds(),
        items=[
            *({"key": f"{m}/{p.name}", **found[m][i]} for m in METHODS for i, p in enumerate(parts)),
            *_of_blocks(parts, found),
        ],
        costs=costs,
        updates=update_statistics(found),
        **_summary(parts, found, journal.get("start") or {}),
    )
    journal.close()
    return result


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, DataError for texts."""
    _asked(run)


figures = adaptation_figures


def _asked(run: Run) -> tuple[dict[str, Any], tuple[float, ...], list[Parts]]:
    """The settings, the rates of AdamW, and the segments' blocks."""
    length = whole_number(run.options, "block_tokens", run.subject.config.data.seq_len - 1, least=8)
    rates = learning_rates(run.options)
    segments = load_segments(run.options, run.subject.config, run.seed)
    parts = [_parts(run, segment.name, segment.text, length) for segment in segments]
    own = {
        "segments": [part.name for part in parts],
        "segment_bytes": [len(segment.text.encode()) for segment in segments],
        "unseen_in_training": all(segment.checked for segment in segments),
        "blocks": {part.name: [len(p) for p in part[1:4]] for part in parts},
        "block_tokens": length,
        "learning_rates": list(rates),
        # All methods write, whether the arms of memorization are asked for or not
        "arms": list(METHODS),
        "memorize": as_settings(run.memorize),
    }
    return own, rates, parts


def _parts(run: Run, name: str, text: str, length: int) -> Parts:
    """Four sevenths of a passage for the stream, one for validation, two held out."""
    tokens = run.subject.trained.tokenizer.encode(text)
    whole = blocks(tokens, length)
    if len(whole) < 4:
        raise DataError(
            f"segments: {name} has {len(tokens)} tokens, fewer than 4 blocks of {length}; give longer texts "
            "or fewer block_tokens"
        )
    validation, held = max(1, len(whole) // 7), max(1, 2 * len(whole) // 7)
    stream = len(whole) - validation - held
    after, most = stream + validation, run.limit
    per_byte = len(tokens) / len(text.encode())
    return Parts(name, whole[:stream][:most], whole[stream:after][:most], whole[after:][:most], per_byte)


def _all_methods(
    run: Run, journal: Journal, reader: Reader, parts: list[Parts], rates: Sequence[float]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Of each method a record a segment, and what the methods cost."""
    params, initial = run.subject.trained.params, reader.start(run.subject.trained.params)
    size = run.batch_size

    def memory(write: bool, carry: bool) -> Method:
        return Method(
            start=lambda: initial,
            begin=lambda fast: fast if carry else initial,
            read=lambda fast, rows: reader.read_on(params, fast, rows, write=write),
            losses=lambda fast, rows: reader.losses(params, fast, rows, batch_size=size),
        )

    tuner = Tuner(reader, 1 + max(len(row) for part in parts for row in part.stream))

    def adamw(rate: float) -> Method:
        def losses(tuned: Tuned, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            return reader.losses(tuned.params, reader.start(tuned.params), rows, batch_size=size)

        return Method(
            start=lambda: tuner.begin(params, rate),
            begin=lambda tuned: tuned,
            read=lambda tuned, rows: (*tuner.read_on(tuned, rows), {}),
            losses=losses,
        )

    if journal.get("start") is None:
        held = [_means(reader.losses(params, initial, part.held, batch_size=size)) for part in parts]
        journal.put("start", {"held": held})
    found = {
        "carried": _read_stream(journal, "carried", memory(True, True), parts),
        "reset": _read_stream(journal, "reset", memory(True, False), parts),
        "no_writes": _read_stream(journal, "no_writes", memory(False, True), parts),
    }
    grid = {rate: _read_stream(journal, f"adamw@{rate:g}", adamw(rate), parts) for rate in rates}
    validation = {rate: _mean_of_means(records[-1]["validation"]) for rate, records in grid.items()}
    # A rate that diverged is the worst; NaN would compare with nothing.
    best = min(rates, key=lambda rate: np.nan_to_num(validation[rate], nan=np.inf))
    found["adamw"] = grid[best]
    tokens = sum(len(row) for part in parts for row in part.stream)
    seconds = {rate: sum(record["seconds"] for record in records) for rate, records in grid.items()}
    costs: dict[str, Any] = {
        name: {"tokens_per_second": _speed(parts, records), "tokens": tokens}
        for name, records in found.items()
    }
    costs["carried"]["state_bytes"] = costs["reset"]["state_bytes"] = _bytes(initial)
    costs["adamw"] |= {
        "state_bytes": _bytes(params) + _bytes(tuner.begin(params, best).state),
        "learning_rate": best,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "runs": len(rates),
        "seconds_of_all_runs": sum(seconds.values()),
    }
    return found, costs


def _read_stream(journal: Journal, name: str, method: Method, parts: Sequence[Parts]) -> list[dict[str, Any]]:
    """The record of each segment: losses of its blocks as they are read, and of all validation and held-out
    blocks after it. What the journal has is not measured again, but read again where later segments need it.
    """
    due = [i for i in range(len(parts)) if journal.get(f"{name}/{i}") is None]
    state = method.start() if due else None
    for i, part in enumerate(parts[: due[-1] + 1] if due else []):
        began = time.monotonic()
        log_probs, state, written = method.read(method.begin(state), part.stream)
        jax.block_until_ready(state)
        seconds = time.monotonic() - began
        if i in due:
            record = {
                "stream": [-float(row.mean()) for row in log_probs],
                "held": [_means(method.losses(state, other.held)) for other in parts],
                "validation": [_means(method.losses(state, other.validation)) for other in parts],
                "seconds": seconds,
                "updates": updates.as_json(written),
            }
            journal.put(f"{name}/{i}", record)
            progress(NAME).info(
                "%s, segment %d of %d (%s): %.3f nats a token", name, i + 1, len(parts), part.name,
                -float(np.mean([row.mean() for row in log_probs])),
            )  # fmt: skip
    return [journal.get(f"{name}/{i}") or {} for i in range(len(parts))]


def _of_blocks(parts: Sequence[Parts], found: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Of each method a record of each block: of the stream as it was read, held out at the end. Blocks of
    other tokens, as those of another tokenizer, have other keys: their losses are of other texts."""
    for method, records in found.items():
        for i, part in enumerate(parts):
            stream, held = records[i]["stream"], records[-1]["held"][i]
            for kind, rows, losses in (("stream", part.stream, stream), ("held_out", part.held, held)):
                for number, (row, loss) in enumerate(zip(rows, losses, strict=True)):
                    yield {
                        "key": item_key(f"{kind}:{part.name}/{number}", row.tobytes()),
                        "arm": method,
                        "tasks": [kind, f"{kind}:{part.name}"],
                        "nats_per_token": loss,
                    }


def _summary(
    parts: Sequence[Parts], found: dict[str, list[dict[str, Any]]], start: dict[str, Any]
) -> dict[str, Any]:
    """Metrics and paired tests; the tables that the figures draw."""
    metrics, tests, order = {}, {}, list(range(len(parts)))
    begin = [np.asarray(row) for row in start["held"]]
    for method, records in found.items():
        table = [np.array([record["held"][i] for record in records]) for i in order]
        stream = [statistics.mean(record["stream"]) for record in records]
        for part, read, rows in zip(parts, stream, table, strict=True):
            kept = statistics.mean(rows[-1])
            for task, estimate in (("stream", read), ("held_out", kept)):
                metrics[f"{task}:{part.name}/nats_per_token/{method}"] = statistics.as_json(estimate)
                byte = _scaled(estimate, part.tokens_per_byte)
                metrics[f"{task}:{part.name}/nats_per_byte/{method}"] = statistics.as_json(byte)
        found_of = {
            "stream/nats_per_token": transfer.average(stream),
            "held_out/nats_per_token": transfer.average([statistics.mean(rows[-1]) for rows in table]),
            "held_out/just_read": transfer.average(
                [statistics.mean(rows[i]) for i, rows in enumerate(table)]
            ),
            "held_out/forgetting": transfer.average(transfer.forgetting(table, order)),
            "held_out/backward_transfer": transfer.average(transfer.backward_transfer(table, order)),
            "held_out/forward_transfer": transfer.average(transfer.forward_transfer(table, begin, order)),
        }
        metrics |= {f"{k}/{method}": statistics.as_json(e) for k, e in found_of.items() if e is not None}
    for other in ("reset", "no_writes", "adamw"):
        for task, pick in (("stream", _stream_of), ("held_out", _held_of)):
            test = statistics.paired_over(list(zip(pick(found["carried"]), pick(found[other]), strict=True)))
            tests[f"{task}/nats_per_token/carried-{other}"] = statistics.paired_as_json(test)
    tables = {
        m: [[float(np.mean(row)) for row in r["held"]] for r in records] for m, records in found.items()
    }
    return {
        "metrics": metrics,
        "paired": tests,
        "held_out_start": [float(row.mean()) for row in begin],
        "held_out_after": tables,
        "stream_losses": {m: [record["stream"] for record in records] for m, records in found.items()},
    }


def _stream_of(records: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    return [np.array(record["stream"]) for record in records]


def _held_of(records: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    return [np.array(losses) for losses in records[-1]["held"]]


def _scaled(estimate: statistics.Estimate, by: float) -> statistics.Estimate:
    return statistics.Estimate(estimate.value * by, estimate.low * by, estimate.high * by, estimate.n)


def _means(losses: Sequence[np.ndarray]) -> list[float]:
    return [float(row.mean()) for row in losses]


def _mean_of_means(losses: Sequence[Sequence[float]]) -> float:
    return float(np.mean([float(np.mean(np.asarray(row))) for row in losses]))


def _speed(parts: Sequence[Parts], records: Sequence[dict[str, Any]]) -> float:
    """Tokens a second of the median segment, so that compiling does not count."""
    rates = [sum(map(len, p.stream)) / r["seconds"] for p, r in zip(parts, records, strict=True)]
    return float(np.median(rates))


def _bytes(tree: PyTree) -> int:
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(tree))
