"""Reports: one for each checkpoint, of its results, configuration and training log; and an index."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from hope_jax.core.files import METRICS_FILE, flatten, read_rows
from hope_jax.evals.suite import plots, registry
from hope_jax.evals.suite.plots import LEAK, WITHOUT_MODEL, split
from hope_jax.evals.suite.registry import Result
from hope_jax.evals.suite.run import ARMS
from hope_jax.report import page
from hope_jax.report.figures import loss_figure
from hope_jax.report.page import (
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
    number,
)

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


class Reported(NamedTuple):
    """A report below an index. folder: beside the index."""

    folder: str
    results: Sequence[Result]


def write_report(
    out: Path,
    name: str,
    about: Mapping[str, Any],
    results: Sequence[Result],
    run_folder: Path,
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Writes `report.html`, `report.md` and `plots/` of one checkpoint. about: of the subject. run_folder:
    its workdir or bundle, whose log is cited if it is there. comparison: as in `comparison.json`."""
    blocks = [*_problems(results), *_overview(results)]
    for result in results:
        if result.outcome is not None:
            blocks += _section(result.name, result.outcome)
    blocks += _comparison(comparison) if comparison is not None else ()
    blocks += _origin(about, run_folder)
    sub = f"{about['block_variant']} · step {about['step']} · {about['parameters']:,} parameters"
    page.write(out, name, sub, blocks)


def write_index(
    out: Path,
    entries: Mapping[str, Reported],
    *,
    baseline: tuple[str, str] | None = None,
    steps: Mapping[str, int] | None = None,
) -> None:
    """Writes the `report.html`, `report.md` and `plots/` above several reports. entries: by the names of the
    checkpoints. baseline: name and folder of the one that all are compared with. steps: of the checkpoints,
    if they are of one run."""
    blocks: list[Block] = [Note(_LEGEND)]
    for name, entry in entries.items():
        blocks += _problems(entry.results, f"{name}: ")
    blocks += [Heading("Reports"), Links(_links(entries, baseline))]
    outcomes = {(r.name, who): r.outcome for who, e in entries.items() for r in e.results if r.outcome}
    for name, about in registry.EVALS.items():
        found = {who: outcome for (of, who), outcome in outcomes.items() if of == name}
        if found:
            metrics = {who: outcome["metrics"] for who, outcome in found.items()}
            blocks.append(Heading(about.title))
            blocks += [Note(f"{who}: {note}") for who, o in found.items() for note in o.get("notes", ())]
            shown = plots.headlines(metrics, about.headlines)
            if len(metrics) > 1 and shown:
                figure = plots.checkpoints_figure(metrics, shown, steps)
                keys = [key for arms in shown.values() for key in arms.values()]
                values = [of[key] for of in metrics.values() for key in keys if key in of]
                what = f"{', '.join(shown)} over {'steps' if steps else 'checkpoints'},"
                blocks.append(plot_of(name, "checkpoints", figure, what, values))
            every = dict.fromkeys(key for of in metrics.values() for key in of)
            rows = {key: {who: of[key] for who, of in metrics.items() if key in of} for key in every}
            blocks.append(_table(rows, metrics))
    page.write(out, "Evaluations", f"{len(entries)} checkpoints", blocks)


def _links(entries: Mapping[str, Reported], baseline: tuple[str, str] | None) -> dict[str, str]:
    links = {}
    for name, entry in entries.items():
        links[f"{name}: report"] = f"{entry.folder}/report.html"
        if baseline is not None:
            links[f"{name} against {baseline[0]}"] = f"{entry.folder}/report.html#{anchor(_AGAINST)}"
    if baseline is not None:
        links[f"{baseline[0]}, the baseline: report"] = f"{baseline[1]}/report.html"
    return links


def plot_of(name: str, part: str, figure: Figure, what: str, values: Iterable[Mapping[str, Any]]) -> Plot:
    """A plot of an evaluation. The caption says what it shows and of how many items; that there is a leak
    stands in both."""
    values = list(values)
    counts = [value["n"] for value in values if value.get("n")] or [0]
    low, high = min(counts), max(counts)
    n = "no items" if not high else f"n = {low}" if low == high else f"n = {low} to {high}"
    caption = f"{registry.EVALS[name].title}: {what} with 95 % intervals ({n})"
    if any(value.get("leak") for value in values):
        plots.mark_leak(figure)
        caption += f"; {LEAK}"
    return Plot(f"{name}-{part}", figure, caption)


def _problems(results: Sequence[Result], who: str = "") -> list[Block]:
    failed = [Warn(f"{who}{r.name} failed: {r.problem}") for r in results if r.failed]
    skipped = [Note(f"{who}{r.name}: {r.problem}") for r in results if r.problem and not r.failed]
    leaks = [Warn(f"{who}{r.name}: {LEAK}") for r in results if r.outcome and r.outcome.get("leak")]
    return [*failed, *leaks, *skipped]


def _overview(results: Sequence[Result]) -> Iterator[Block]:
    done = {result.name: result.outcome for result in results if result.outcome is not None}
    rows = []
    for name, outcome in done.items():
        metrics = outcome["metrics"]
        # What has no model may count a whole split.
        counts = [m.get("n") or 0 for key, m in metrics.items() if split(key)[2] not in WITHOUT_MODEL]
        leak, seconds = "leak" if outcome.get("leak") else "", f"{outcome.get('seconds') or 0:,.0f}"
        title = registry.EVALS[name].title
        rows.append([title, str(len(metrics)), str(max(counts, default=0)), leak, seconds])
    yield Heading("Evaluations")
    yield Table(["evaluation", "figures", "items at most", "leak", "seconds"], rows)
    yield Links({f"{name}.json": f"{name}.json" for name in done})
    yield Note(_LEGEND)


def _section(name: str, outcome: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading(registry.EVALS[name].title)
    if outcome.get("leak"):
        yield Warn(LEAK)
    for note in outcome.get("notes", ()):
        yield Note(str(note))
    yield from _plots(name, outcome)
    yield metrics_table(outcome["metrics"])
    if outcome.get("paired"):
        yield Note("Differences between arms, item by item:")
        yield paired_table(outcome["paired"])
    if outcome.get("updates"):
        yield Note("What memorization has written: means over items of each level's statistics.")
        yield updates_table(outcome["updates"])
    yield _folded(f"Settings of {name}, digest {outcome['settings_digest'][:16]}", outcome["settings"])


def _plots(name: str, outcome: Mapping[str, Any]) -> Iterator[Block]:
    metrics, own = outcome["metrics"], {}
    try:
        own = registry.figures_of(name, outcome)
    except Exception as error:  # a plot that cannot be drawn takes no figure away
        logger.error("error: plots of %s: %s: %s", name, type(error).__name__, error)
        yield Warn(f"The plots of {name} could not be drawn ({type(error).__name__}: {error}).")
    if not own and (drawn := plots.metrics_figure(metrics)) is not None:
        own = {"metrics": drawn}
    marked = [{"leak": outcome.get("leak")}, *metrics.values()]
    for given, figure in own.items():
        plot = given.removeprefix(f"{name}_")
        yield plot_of(name, plot, figure, f"{plot.replace('_', ' ')},", marked)


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each task and metric, a column for each arm."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, value in metrics.items():
        task, metric, arm = split(key)
        rows.setdefault(f"{task}/{metric}" if task else metric, {})[arm] = value
    there = dict.fromkeys(arm for row in rows.values() for arm in row)
    return _table(rows, [arm for arm in dict.fromkeys(("", *ARMS, *there)) if arm in there])


def _table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Iterable[str]) -> Table:
    """A row for each name, with what each column has of it, the counts, and chance."""
    table = []
    for name, row in rows.items():
        counts = " / ".join(dict.fromkeys(str(value.get("n", "–")) for value in row.values()))
        chance = next((number(v["chance"]) for v in row.values() if v.get("chance") is not None), "–")
        table.append([name, *(_estimate(row.get(column)) for column in columns), counts, chance])
    return Table(["metric", *(column or "value" for column in columns), "n", "chance"], table)


def paired_table(paired: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each paired test."""
    corrected = ["p_holm"] if any("p_holm" in test for test in paired.values()) else []
    rows = [
        [key, _estimate({**test, "value": test["delta"]}), *(_p(test[p]) for p in ("p_value", *corrected)),
         str(test["n"]), test["test"]]
        for key, test in paired.items()
    ]  # fmt: skip
    return Table(["difference", "delta", "p", *("p, Holm" for _ in corrected), "n", "test"], rows)


def updates_table(updates: Mapping[str, Any]) -> Table:
    """A row for each arm and level, a column for each statistic of its writes."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flatten(updates).items():
        *who, name = key.split(".")
        found.setdefault(", ".join(who), {})[name] = value
    names = dict.fromkeys(name for counts in found.values() for name in counts)
    rows = [[who, *(number(counts.get(name)) for name in names)] for who, counts in found.items()]
    return Table(["arm, level", *names], rows)


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
        figure = plots.differences_figure(found["paired"])
        if figure is not None:
            yield plot_of(name, "comparison", figure, "differences", found["paired"].values())
        yield paired_table(found["paired"])
        if found["only_one"]:
            yield Note(f"{name}: {found['only_one']} items only one of the two has answered.")
        if found["settings_differ"]:
            differing = ", ".join(found["settings_differ"])
            yield Warn(f"{name}: the two differ in these settings too: {differing}")


def _origin(about: Mapping[str, Any], run_folder: Path) -> Iterator[Block]:
    """The checkpoint, its training log, its configuration."""
    yield Heading("Checkpoint")
    parts = {"its parameters": "arrays", "its configuration": "config", "its tokenizer": "tokenizer"}
    yield Values(
        {
            "checkpoint": about["checkpoint"],
            **{f"digest of {what}": about[f"{part}_digest"] for what, part in parts.items()},
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
        yield Values({**last, "file": cited, "SHA-256": hashlib.sha256(log.read_bytes()).hexdigest()})
    else:
        yield Note(f"There is no training log ({METRICS_FILE}) beside this checkpoint.")
    yield _folded(f"Configuration ({run_folder.name}/checkpoints/{about['step']}.yaml)", about["config"])


def _folded(title: str, values: Mapping[str, Any]) -> Folded:
    return Folded(title, "\n".join(f"{key}: {value}" for key, value in flatten(values).items()))


def _estimate(value: Mapping[str, Any] | None) -> str:
    """A value with its interval, and LEAK where it comes from one."""
    if value is None or value.get("value") is None:
        return "–"
    text = number(value["value"])
    if interval := value.get("ci95"):
        text += f" [{number(interval[0])}, {number(interval[1])}]"
    return f"{text} LEAK" if value.get("leak") else text


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"
