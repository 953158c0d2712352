"""What the HTML pages of runs and of evaluations share: a style and a few elements."""

import datetime
from collections.abc import Mapping
from html import escape
from typing import Any

_CSS = """
body { margin: 0; background: #f4f6f7; color: #22303c;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 36px 0 10px; }
.sub { color: #66737e; margin: 2px 0 22px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, .card { background: #fff; border: 1px solid #e3e8eb; border-radius: 8px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: #66737e; font-size: 12.5px; }
.card { padding: 16px 18px; overflow-x: auto; }
.card img { width: 100%; display: block; }
.note { color: #66737e; font-size: 13px; margin: 8px 2px 0; max-width: 75ch; }
.note + .card { margin-top: 14px; }
.warn { background: #fdf3e7; border: 1px solid #f0d9b8; border-radius: 8px;
  padding: 10px 14px; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid #eef1f3; vertical-align: top; }
th { font-weight: 500; color: #66737e; }
.num td, .num th { text-align: right; } .num td:first-child, .num th:first-child { text-align: left; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
@media (max-width: 720px) { .two { grid-template-columns: 1fr; } }
blockquote { margin: 0 0 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote:last-child { margin: 0; }
blockquote i { color: #8a959e; font-style: normal; }
details { margin-top: 12px; } summary { cursor: pointer; color: #66737e; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; }
"""


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


def tiles(values: Mapping[str, str]) -> str:
    """What a number is -> the number, large."""
    cells = (f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in values.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(values: Mapping[str, Any]) -> str:
    """Two columns: names and values."""
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(number(v))}</td></tr>" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>"


def figure(uri: str, alt: str) -> str:
    """An image in a frame. uri: with its content (`figures.as_data_uri`)."""
    return f'<div class="card"><img alt="{escape(alt)}" src="{uri}"></div>'


def page(title: str, sub: str, body: str) -> str:
    """The whole page. title, sub: text; body: HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(sub)}</p>{body}</main></body></html>\n'
    )
