"""Online adaptation: a stream of segments read once, by memories and by fine-tuning.

Four methods read the same blocks in the same order; what the rule of memorization says of writes holds for
all:
- `carried`: memories are written as the model reads, and go on from segment to segment;
- `reset`: memories are written, and each segment begins with those of the checkpoint;
- `no_writes`: nothing is a target, so memories that teach signals drive stay as they are;
- `adamw`: nothing is written; the slow parameters take one AdamW step after each block, at the best of a few
  learning rates by the loss on validation slices of all segments after the last one.

The loss on the stream is that of each block before it has taught anything but its own beginning. After each
segment all held-out slices are read without writing (docs/evals/continual.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.evals import statistics, transfer
from hope_jax.evals.reading.memorize import as_settings, updates_as_json
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.suite.run import Journal, Run, evaluation, item_key
from hope_jax.evals.tasks.arms import Arm, Records, run_steps, timed, update_statistics
from hope_jax.evals.tasks.curves import adaptation_figures
from hope_jax.evals.tasks.finetune import Tuned, Tuner, best_rate, learning_rates
from hope_jax.evals.tasks.segments import Cut, cut_segments

NAME = "adaptation"
METHODS = ("carried", "reset", "no_writes", "adamw")
Rows = Sequence[np.ndarray]


class Parts(NamedTuple):
    """A segment's blocks, int32 [n] each: of the stream, for choosing a learning rate, held out.
    tokens_per_byte: of its passage."""

    name: str
    stream: Rows
    validation: Rows
    held: Rows
    tokens_per_byte: float


def _asked(run: Run) -> tuple[dict[str, Any], tuple[float, ...], list[Parts]]:
    """The settings, the rates of AdamW, and the segments' blocks."""
    rates = learning_rates(run.options)
    cuts, settings = cut_segments(run, 4)
    parts = [_parts(cut, run.limit) for cut in cuts]
    own = {
        "blocks": {part.name: [len(rows) for rows in part[1:4]] for part in parts},
        "learning_rates": list(rates),
        # All methods write, whether the arms of memorization are asked for or not
        "arms": list(METHODS),
        "memorize": as_settings(run.memorize),
    }
    return settings | own, rates, parts


def _parts(cut: Cut, limit: int | None) -> Parts:
    """Four sevenths of a passage for the stream, one for validation, two held out."""
    whole, count = cut.blocks, len(cut.blocks)
    after = count - max(1, 2 * count // 7)
    stream = after - max(1, count // 7)
    validation, held = whole[stream:after], whole[after:]
    return Parts(cut.name, whole[:stream][:limit], validation[:limit], held[:limit], cut.per_byte)


@evaluation(NAME, _asked, adaptation_figures)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], rates: Sequence[float], parts: list[Parts]
) -> dict[str, Any]:
    """What is measured. `run.limit`: blocks of each slice of a segment at most."""
    found, costs = _all_methods(run, journal, parts, rates)
    of_segments = [{"key": f"{m}/{p.name}", **found[m][i]} for m in METHODS for i, p in enumerate(parts)]
    (start,) = journal.all(["start"])
    return {
        "items": [*of_segments, *_of_blocks(parts, found)],
        "costs": costs,
        "updates": update_statistics(found),
        **_summary(parts, found, [np.asarray(row) for row in start["held"]]),
    }


def _all_methods(
    run: Run, journal: Journal, parts: list[Parts], rates: Sequence[float]
) -> tuple[Records, dict[str, Any]]:
    """Of each method a record a segment, and what the methods cost."""
    reader, params = Reader(run.subject, run.memorize), run.subject.trained.params
    initial = reader.start(params)

    def losses(params: PyTree, fast: PyTree, rows: Rows) -> list[float]:
        return _means(reader.losses(params, fast, rows, batch_size=run.batch_size))

    def scored(params: PyTree, fast: PyTree) -> dict[str, Any]:
        return {
            "held": [losses(params, fast, part.held) for part in parts],
            "validation": [losses(params, fast, part.validation) for part in parts],
        }

    def memory(write: bool, carry: bool) -> Arm:
        def learn(fast: PyTree, i: int) -> tuple[PyTree, dict[str, Any]]:
            begin, rows = fast if carry else initial, parts[i].stream
            seconds, read = timed(lambda: reader.read_on(params, begin, rows, write=write))
            return read.fast, _learned(seconds, read.log_probs, updates_as_json(read.updates))

        return Arm(initial, learn, lambda fast, _: scored(params, fast))

    tuner = Tuner(reader, 1 + max(len(row) for part in parts for row in part.stream))

    def adamw(rate: float) -> Arm:
        def learn(tuned: Tuned, i: int) -> tuple[Tuned, dict[str, Any]]:
            seconds, (log_probs, after) = timed(lambda: tuner.read_on(tuned, parts[i].stream))
            return after, _learned(seconds, log_probs, {})

        return Arm(tuner.begin(params, rate), learn, lambda t, _: scored(t.params, reader.start(t.params)))

    def told(record: Mapping[str, Any]) -> str:
        return f"{np.mean(record['stream']):.3f} nats a token"

    def read(name: str, arm: Arm) -> list[dict[str, Any]]:
        return run_steps(journal, name, arm, len(parts), told)

    journal.once("start", lambda: {"held": [losses(params, initial, part.held) for part in parts]})
    write_and_carry = {"carried": (True, True), "reset": (True, False), "no_writes": (False, True)}
    found = {name: read(name, memory(*how)) for name, how in write_and_carry.items()}
    grid = {rate: read(f"adamw@{rate:g}", adamw(rate)) for rate in rates}
    validation = {rate: float(np.mean(_means(rs[-1]["validation"]))) for rate, rs in grid.items()}
    best = best_rate(validation)
    found["adamw"] = grid[best]
    costs = _costs(parts, found)
    costs["carried"]["state_bytes"] = costs["reset"]["state_bytes"] = _bytes(initial)
    costs["adamw"] |= {
        "state_bytes": _bytes(params) + _bytes(tuner.begin(params, best).state),
        "learning_rate": best,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "runs": len(rates),
        "seconds_of_all_runs": sum(record["seconds"] for records in grid.values() for record in records),
    }
    return found, costs


def _costs(parts: Sequence[Parts], found: Records) -> dict[str, dict[str, Any]]:
    """Of each method its tokens, and those of a second, of the median segment, so that compiling does not
    count."""
    sizes = [sum(map(len, part.stream)) for part in parts]
    costs: dict[str, dict[str, Any]] = {}
    for name, records in found.items():
        speeds = [size / record["seconds"] for size, record in zip(sizes, records, strict=True)]
        costs[name] = {"tokens_per_second": float(np.median(speeds)), "tokens": sum(sizes)}
    return costs


def _learned(seconds: float, log_probs: Rows, updates: dict[str, Any]) -> dict[str, Any]:
    """The record of a segment as it was read."""
    return {"seconds": seconds, "stream": [-float(row.mean()) for row in log_probs], "updates": updates}


def _of_blocks(parts: Sequence[Parts], found: Records) -> Iterator[dict[str, Any]]:
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


def _summary(parts: Sequence[Parts], found: Records, start: list[np.ndarray]) -> dict[str, Any]:
    """Metrics and paired tests; the tables that the figures draw. start: held-out losses at the beginning."""
    metrics: dict[str, Any] = {}
    tests, order = {}, list(range(len(parts)))
    for method, records in found.items():
        table = [np.array([record["held"][i] for record in records]) for i in order]
        of = {
            "stream": [statistics.mean(record["stream"]) for record in records],
            "held_out": [statistics.mean(rows[-1]) for rows in table],
        }
        for i, part in enumerate(parts):
            for task, estimates in of.items():
                metrics[f"{task}:{part.name}/nats_per_token/{method}"] = estimates[i]
                byte = estimates[i].mapped(part.tokens_per_byte.__mul__)
                metrics[f"{task}:{part.name}/nats_per_byte/{method}"] = byte
        averages: dict[str, Sequence[statistics.Estimate | None]] = {
            "stream/nats_per_token": of["stream"],
            "held_out/nats_per_token": of["held_out"],
            "held_out/just_read": [statistics.mean(rows[i]) for i, rows in enumerate(table)],
            "held_out/forgetting": transfer.forgetting(table, order),
            "held_out/backward_transfer": transfer.backward_transfer(table, order),
            "held_out/forward_transfer": transfer.forward_transfer(table, start, order),
        }
        whole = {f"{key}/{method}": transfer.average(estimates) for key, estimates in averages.items()}
        metrics |= {key: estimate for key, estimate in whole.items() if estimate is not None}
    losses = {
        "stream": {m: [np.array(r["stream"]) for r in records] for m, records in found.items()},
        "held_out": {m: [np.array(row) for row in records[-1]["held"]] for m, records in found.items()},
    }
    for other in METHODS[1:]:
        for task, by_method in losses.items():
            pairs = list(zip(by_method["carried"], by_method[other], strict=True))
            tests[f"{task}/nats_per_token/carried-{other}"] = statistics.paired_over(pairs)
    return {
        "metrics": metrics,
        "paired": tests,
        "held_out_start": _means(start),
        "held_out_after": {m: [_means(record["held"]) for record in records] for m, records in found.items()},
        "stream_losses": {m: [record["stream"] for record in records] for m, records in found.items()},
    }


def _means(losses: Sequence[Any]) -> list[float]:
    return [float(np.mean(row)) for row in losses]


def _bytes(tree: PyTree) -> int:
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(tree))
