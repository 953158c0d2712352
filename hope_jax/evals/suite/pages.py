"""Reports: one for each checkpoint, of its results, configuration and training log; and an index."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.core.files import METRICS_FILE, flatten, read_rows
from hope_jax.evals.suite import figures as report_figures
from hope_jax.evals.suite import registry
from hope_jax.evals.suite.figures import LEAK, WITHOUT_MODEL, split
from hope_jax.evals.suite.run import ARMS
from hope_jax.evals.suite.runner import Result
from hope_jax.report import blocks as report_blocks
from hope_jax.report.blocks import (
    Block,
    Folded,
    Heading,
    Links,
    Note,
    Plot,
    Table,
    Values,
    Warn,
    anchor,
)
from hope_jax.report.figures import loss_figure

logger = logging.getLogger("hope_jax.evals")

_LEGEND = (
    "Brackets hold 95 % intervals: Wilson's for shares, Student's for means. n: items. Paired tests are item "
    "by item; p values of one evaluation are not corrected for their number. Arms: baseline reads "
    "the item alone; memorized has first read and written the item's own text; control an unrelated text of "
    "the same length. A gain over baseline may be mere adaptation. Control reads as many tokens, but may "
    "write less where its text surprises less (and more where more): the table of updates shows both, and "
    "--memorize_surprise_threshold=0 makes the numbers of their writes equal, not their sizes."
)
_AGAINST = "Against the baseline"
_LOG = ("eval_loss", "eval_loss_no_writes", "unigram_entropy", "loss")


def write_report(
    out: Path,
    name: str,
    about: Mapping[str, Any],
    results: Sequence[Result],
    run_folder: Path,
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Writes `report.html`, `report.md` and `plots/` of one checkpoint.

    about: of the subject. run_folder: its workdir or bundle, whose log is cited if it is there.
    comparison: as in `comparison.json`.
    """
    blocks = [*_problems(results), *_overview(results)]
    for result in results:
        if result.outcome is not None:
            blocks += _section(result.name, result.outcome)
    if comparison is not None:
        blocks += _comparison(comparison)
    blocks += _origin(about, run_folder)
    sub = f"{about['block_variant']} · step {about['step']} · {about['parameters']:,} parameters"
    report_blocks.write(out, name, sub, blocks)


class Reported(NamedTuple):
    """A report below an index. folder: beside the index."""

    folder: str
    results: Sequence[Result]


def write_index(
    out: Path,
    entries: Mapping[str, Reported],
    *,
    baseline: tuple[str, str] | None = None,
    steps: Mapping[str, int] | None = None,
) -> None:
    """Writes the `report.html`, `report.md` and `plots/` above several reports.

    entries: by the names of the checkpoints. baseline: name and folder of the one that all are compared with.
    steps: of the checkpoints, if they are of one run.
    """
    blocks: list[Block] = [Note(_LEGEND)]
    for name, (_, results) in entries.items():
        blocks += _problems(results, f"{name}: ")
    blocks += [Heading("Reports"), Links(_links(entries, baseline))]
    for name, entry in registry.EVALS.items():
        found = {
            who: result.outcome
            for who, (_, results) in entries.items()
            for result in results
            if result.name == name and result.outcome is not None
        }
        if found:
            notes = [
                Note(f"{who}: {note}") for who, outcome in found.items() for note in outcome.get("notes", ())
            ]
            metrics = {who: outcome["metrics"] for who, outcome in found.items()}
            blocks += [Heading(entry.title), *notes, *_over_checkpoints(name, metrics, steps)]
            blocks.append(_side_by_side(metrics))
    report_blocks.write(out, "Evaluations", f"{len(entries)} checkpoints", blocks)


def _links(entries: Mapping[str, Reported], baseline: tuple[str, str] | None) -> dict[str, str]:
    links = {}
    for name, entry in entries.items():
        links[f"{name}: report"] = f"{entry.folder}/report.html"
        if baseline is not None:
            links[f"{name} against {baseline[0]}"] = f"{entry.folder}/report.html#{anchor(_AGAINST)}"
    if baseline is not None:
        links[f"{baseline[0]}, the baseline: report"] = f"{baseline[1]}/report.html"
    return links


def _over_checkpoints(
    name: str, found: Mapping[str, Mapping[str, Any]], steps: Mapping[str, int] | None
) -> Iterator[Block]:
    """The plot of an evaluation's headlines; none of a single checkpoint."""
    shown = report_figures.headlines(found, registry.EVALS[name].headlines)
    if len(found) < 2 or not shown:
        return
    values = [m[key] for m in found.values() for arms in shown.values() for key in arms.values() if key in m]
    caption = f"{registry.EVALS[name].title}: {', '.join(shown)} over {'steps' if steps else 'checkpoints'}"
    caption += f", with 95 % intervals ({_counts(values)})"
    if any(value.get("leak") for value in values):
        caption += f"; {LEAK}"
    yield Plot(f"{name}-checkpoints", report_figures.checkpoints_figure(found, shown, steps), caption)


def _side_by_side(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each metric, a column for each checkpoint."""
    firsts: dict[str, Mapping[str, Any]] = {}
    for metrics in found.values():
        firsts |= {key: value for key, value in metrics.items() if key not in firsts}
    rows = [
        [key, *(_estimate(metrics.get(key)) for metrics in found.values()), _chance(first)]
        for key, first in firsts.items()
    ]
    return Table(["metric", *found, "chance"], rows)


def _problems(results: Sequence[Result], who: str = "") -> list[Block]:
    failed = [Warn(f"{who}{r.name} failed: {r.problem}") for r in results if r.failed]
    skipped = [Note(f"{who}{r.name}: {r.problem}") for r in results if r.problem and not r.failed]
    leaks = [Warn(f"{who}{r.name}: {LEAK}") for r in results if r.outcome and r.outcome.get("leak")]
    return [*failed, *leaks, *skipped]


def _overview(results: Sequence[Result]) -> Iterator[Block]:
    done = [result for result in results if result.outcome is not None]
    rows = [
        [
            registry.EVALS[r.name].title,
            str(len(r.outcome["metrics"])),
            str(max((m.get("n") or 0 for m in _of_items(r.outcome["metrics"])), default=0)),
            "leak" if r.outcome.get("leak") else "",
            f"{r.outcome.get('seconds') or 0:,.0f}",
        ]
        for r in done
        if r.outcome is not None
    ]
    yield Heading("Evaluations")
    yield Table(["evaluation", "figures", "items at most", "leak", "seconds"], rows)
    yield Links({f"{r.name}.json": f"{r.name}.json" for r in done})
    yield Note(_LEGEND)


def _of_items(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those of arms with a model: what has none may count a whole split."""
    return (value for key, value in metrics.items() if split(key)[2] not in WITHOUT_MODEL)


def _section(name: str, outcome: Mapping[str, Any]) -> Iterator[Block]:
    metrics, leak = outcome["metrics"], bool(outcome.get("leak"))
    yield Heading(registry.EVALS[name].title)
    if leak:
        yield Warn(LEAK)
    for note in outcome.get("notes", ()):
        yield Note(str(note))
    yield from _plots(name, outcome)
    yield metrics_table(metrics)
    if outcome.get("paired"):
        yield Note("Differences between arms, item by item:")
        yield paired_table(outcome["paired"])
    if outcome.get("updates"):
        yield Note("What memorization has written: means over items of each level's statistics.")
        yield updates_table(outcome["updates"])
    settings = "\n".join(f"{key}: {value}" for key, value in flatten(outcome["settings"]).items())
    yield Folded(f"Settings of {name}, digest {outcome['settings_digest'][:16]}", settings)


def _plots(name: str, outcome: Mapping[str, Any]) -> list[Block]:
    leak, blocks = bool(outcome.get("leak")), list[Block]()
    try:
        own = registry.figures_of(name, outcome)
    except Exception as error:  # a plot that cannot be drawn takes no figure away
        logger.error("error: plots of %s: %s: %s", name, type(error).__name__, error)
        blocks.append(Warn(f"The plots of {name} could not be drawn ({type(error).__name__}: {error})."))
        own = {}
    for figure in own.values():
        report_figures.mark_leak(figure, leak)
    if not own:
        drawn = report_figures.metrics_figure(outcome["metrics"])
        own = {} if drawn is None else {"metrics": drawn}
    for given, figure in own.items():
        plot = given.removeprefix(f"{name}_")
        caption = f"{registry.EVALS[name].title}: {plot.replace('_', ' ')}, with 95 % intervals"
        caption += f" ({_counts(outcome['metrics'].values())})"
        blocks.append(Plot(f"{name}-{plot}", figure, f"{caption}; {LEAK}" if leak else caption))
    return blocks


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each task and metric, a column for each arm; with counts and chance."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, value in metrics.items():
        task, metric, arm = split(key)
        rows.setdefault(f"{task}/{metric}" if task else metric, {})[arm] = value
    there = dict.fromkeys(arm for row in rows.values() for arm in row)
    arms = [arm for arm in dict.fromkeys(("", *ARMS, *there)) if arm in there]
    table = [
        [name, *(_estimate(row.get(arm)) for arm in arms), _n(row.values()), _chance(*row.values())]
        for name, row in rows.items()
    ]
    return Table(["metric", *(arm or "value" for arm in arms), "n", "chance"], table)


def paired_table(paired: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each paired test."""
    corrected = any("p_holm" in test for test in paired.values())
    head = ["difference", "delta", "p", *(["p, Holm"] if corrected else []), "n", "test"]
    rows = [
        [
            key,
            _estimate({**test, "value": test["delta"]}),
            _p(test["p_value"]),
            *([_p(test["p_holm"])] if corrected else []),
            str(test["n"]),
            test["test"],
        ]
        for key, test in paired.items()
    ]
    return Table(head, rows)


def updates_table(updates: Mapping[str, Any]) -> Table:
    """A row for each arm and level, a column for each statistic of its writes."""
    found = dict(_leaves(updates))
    names = dict.fromkeys(name for counts in found.values() for name in counts)
    rows = [[who, *(_number(counts.get(name)) for name in names)] for who, counts in found.items()]
    return Table(["arm, level", *names], rows)


def _leaves(updates: Mapping[str, Any], who: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The innermost mappings, each with the names that lead to it."""
    if not any(isinstance(value, Mapping) for value in updates.values()):
        yield who, updates
        return
    for name, value in updates.items():
        yield from _leaves(value, f"{who}, {name}" if who else name)


def _comparison(comparison: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading(_AGAINST)
    yield Note(
        f"Checkpoint minus {comparison['baseline']['checkpoint']} over the items of both, under the same "
        "seeds. Holm's p values are corrected for the single tests of an evaluation; tests that pool several "
        "of them, as over all texts, are corrected among themselves. Numbers: comparison.json."
    )
    for name, found in comparison["evals"].items():
        if "problem" in found:
            yield Note(f"{name}: {found['problem']}")
            continue
        figure = report_figures.differences_figure(found["paired"])
        leak = any(test.get("leak") for test in found["paired"].values())
        caption = f"{registry.EVALS[name].title}: differences with 95 % intervals"
        caption += f" ({_counts(found['paired'].values())})"
        if figure is not None:
            yield Plot(f"{name}-comparison", figure, f"{caption}; {LEAK}" if leak else caption)
        yield paired_table(found["paired"])
        if found["only_one"]:
            yield Note(f"{name}: {found['only_one']} items only one of the two has answered.")
        if found["settings_differ"]:
            differing = ", ".join(found["settings_differ"])
            yield Warn(f"{name}: the two differ in these settings too: {differing}")


def _origin(about: Mapping[str, Any], run_folder: Path) -> Iterator[Block]:
    """The checkpoint, its training log, its configuration."""
    yield Heading("Checkpoint")
    yield Values(
        {
            "checkpoint": about["checkpoint"],
            "digest of its parameters": about["arrays_digest"],
            "digest of its configuration": about["config_digest"],
            "digest of its tokenizer": about["tokenizer_digest"],
            **{f"{name}, at training": version for name, version in about["versions"].items()},
        }
    )
    log = run_folder / METRICS_FILE
    rows = [row for row in read_rows(log) if row["step"] <= about["step"]]
    if rows:
        yield Heading("Training log")
        last = {key: next((r[key] for r in rows[::-1] if r.get(key) is not None), None) for key in _LOG}
        cited = f"{run_folder.name}/{METRICS_FILE}"
        yield Plot("training-loss", loss_figure(rows), f"Loss up to step {about['step']}, from {cited}")
        sha256 = hashlib.sha256(log.read_bytes()).hexdigest()
        yield Values({**last, "file": cited, "SHA-256": sha256})
    else:
        yield Note(f"There is no training log ({METRICS_FILE}) beside this checkpoint.")
    config = "\n".join(f"{key}: {value}" for key, value in flatten(about["config"]).items())
    yield Folded(f"Configuration ({run_folder.name}/checkpoints/{about['step']}.yaml)", config)


def _estimate(value: Mapping[str, Any] | None) -> str:
    """A value with its interval, and LEAK where it comes from one."""
    if value is None or value.get("value") is None:
        return "–"
    interval = value.get("ci95")
    text = _number(value["value"])
    if interval:
        text += f" [{_number(interval[0])}, {_number(interval[1])}]"
    return f"{text} LEAK" if value.get("leak") else text


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _n(values: Any) -> str:
    return " / ".join(dict.fromkeys(str(value.get("n", "–")) for value in values))


def _chance(*values: Mapping[str, Any]) -> str:
    return next((_number(v["chance"]) for v in values if v.get("chance") is not None), "–")


def _counts(values: Any) -> str:
    counts = [value["n"] for value in values if value.get("n")]
    if not counts:
        return "no items"
    low, high = min(counts), max(counts)
    return f"n = {low}" if low == high else f"n = {low} to {high}"
