"""What a report is made of, and its two renderings: one HTML page, and Markdown with its plots beside it."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

from matplotlib.figure import Figure

from hope_jax.core.files import write_atomic
from hope_jax.report import page
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


class Table(NamedTuple):
    """head: names of the columns. rows: as many texts each; the first is a name, the others are numbers.
    A long one is folded."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Values(NamedTuple):
    """Names and values."""

    values: Mapping[str, object]


class Plot(NamedTuple):
    """name: of its file, without ending."""

    name: str
    figure: Figure
    caption: str


class Folded(NamedTuple):
    """Text that few read."""

    title: str
    text: str


Block: TypeAlias = Heading | Note | Warn | Links | Table | Values | Plot | Folded


def write(out: Path, title: str, sub: str, blocks: Sequence[Block]) -> None:
    """Writes `report.html`, `report.md` and `plots/` into a folder that is there."""
    write_atomic(out / "report.html", page.page(title, sub, "\n".join(_html(block) for block in blocks)))
    plots = [block for block in blocks if isinstance(block, Plot)]
    if plots:
        (out / PLOTS).mkdir(exist_ok=True)
    for plot in plots:
        save_png(plot.figure, out / PLOTS / f"{plot.name}.png")
    body = "\n\n".join(markdown(block) for block in blocks)
    write_atomic(out / "report.md", f"# {title}\n\n{sub}\n\n{body}\n")


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f'<h2 id="{anchor(text)}">{escape(text)}</h2>'
        case Note(text):
            return f'<p class="note">{escape(text)}</p>'
        case Warn(text):
            return f'<div class="warn">{escape(text)}</div>'
        case Links(targets):
            links = (f'<a href="{escape(path)}">{escape(text)}</a>' for text, path in targets.items())
            return f'<p class="note">{" · ".join(links)}</p>'
        case Table(head, rows):
            cells = "".join(f"<th>{escape(text)}</th>" for text in head)
            body = "".join(f"<tr>{''.join(f'<td>{escape(t)}</td>' for t in row)}</tr>" for row in rows)
            table = f'<div class="card"><table class="num"><tr>{cells}</tr>{body}</table></div>'
            if len(rows) <= _LONG:
                return table
            return f"<details><summary>All {len(rows)} rows</summary>{table}</details>"
        case Values(values):
            return f'<div class="card">{page.table(values)}</div>'
        case Plot(_, figure, caption):
            return page.figure(as_data_uri(figure), caption) + f'<p class="note">{escape(caption)}</p>'
        case Folded(title, text):
            return f"<details><summary>{escape(title)}</summary><code>{escape(text)}</code></details>"


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
            lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, rows)]
            table = "\n".join(lines)
            if len(rows) <= _LONG:
                return table
            return f"<details><summary>All {len(rows)} rows</summary>\n\n{table}\n\n</details>"
        case Values(values):
            pairs = [(key, page.number(value)) for key, value in values.items()]
            return "\n".join([_line(("what", "value")), "|---|---|", *map(_line, pairs)])
        case Plot(name, _, caption):
            return f"![{caption}]({PLOTS}/{name}.png)\n\n{caption}"
        case Folded(title, text):
            return f"<details><summary>{title}</summary>\n\n```\n{text}\n```\n\n</details>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def anchor(text: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
