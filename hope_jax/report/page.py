"""What a report is made of, and its two renderings: one HTML page, and Markdown with its plots beside it."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jinja2
from matplotlib.figure import Figure

from hope_jax.core.files import write_atomic
from hope_jax.report.figures import as_data_uri, save_png

PLOTS = "plots"
"""Folder beside `report.md` with the plots as PNG files."""

_LONG = 40
"""Rows of a table above which it is folded."""


class Heading(NamedTuple):
    """Of a section."""

    text: str


class Note(NamedTuple):
    """A paragraph."""

    text: str


class Warn(NamedTuple):
    """A paragraph that must not be overlooked."""

    text: str


class Links(NamedTuple):
    """A line of links: their texts -> paths beside the report."""

    targets: Mapping[str, str]


class Tiles(NamedTuple):
    """What a number is -> the number, large."""

    values: Mapping[str, str]


class Table(NamedTuple):
    """head: names of the columns. rows: as many texts each, first a name, then numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def folds(self) -> bool:
        """Whether it is so long that a page folds it."""
        return len(self.rows) > _LONG


class Values(NamedTuple):
    """Names and values."""

    values: Mapping[str, object]


class Plot(NamedTuple):
    """name: of its file, without ending."""

    name: str
    figure: Figure
    caption: str


class Quotes(NamedTuple):
    """Prompts, and texts that go on from them."""

    pairs: Sequence[tuple[str, str]]


class Folded(NamedTuple):
    """Text that few read."""

    title: str
    text: str


Block: TypeAlias = Heading | Note | Warn | Links | Tiles | Table | Values | Plot | Quotes | Folded


def number(value: Any, digits: int = 4) -> str:
    """A number for reading; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash for None."""
    return "–" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def anchor(text: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def html(title: str, sub: str, blocks: Sequence[Block]) -> str:
    """A page that needs nothing beside it."""
    page = jinja2.Environment(loader=jinja2.PackageLoader("hope_jax.report", "."), autoescape=True)
    page.filters.update(number=number, anchor=anchor, data_uri=as_data_uri)
    return page.get_template("page.html").render(title=title, sub=sub, blocks=blocks)


def write(out: Path, title: str, sub: str, blocks: Sequence[Block]) -> None:
    """Writes `report.html`, `report.md` and `plots/` into a folder that is there."""
    write_atomic(out / "report.html", html(title, sub, blocks))
    for plot in (block for block in blocks if isinstance(block, Plot)):
        (out / PLOTS).mkdir(exist_ok=True)
        save_png(plot.figure, out / PLOTS / f"{plot.name}.png")
    body = "\n\n".join(markdown(block) for block in blocks)
    write_atomic(out / "report.md", f"# {title}\n\n{sub}\n\n{body}\n")


def markdown(block: Block) -> str:
    """A block as Markdown; of a plot the link."""
    match block:
        case Heading(text):
            return f"## {text}"
        case Note(text):
            return text
        case Warn(text):
            return f"> **{text}**"
        case Links(targets):
            return " · ".join(f"[{text}]({path})" for text, path in targets.items())
        case Table(head, rows):
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            table = "\n".join(map(_line, lines))
            return _folded(f"All {len(rows)} rows", table) if block.folds else table
        case Values(values) | Tiles(values):
            lines = [("what", "value"), ("---", "---"), *((k, number(v)) for k, v in values.items())]
            return "\n".join(map(_line, lines))
        case Plot(name, _, caption):
            return f"![{caption}]({PLOTS}/{name}.png)\n\n{caption}"
        case Quotes(pairs):
            return "\n\n".join(f"> *{prompt}*{text}" for prompt, text in pairs)
        case Folded(title, text):
            return _folded(title, f"```\n{text}\n```")


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
