"""A page in one file: nothing of it is fetched from anywhere, and nothing of it runs."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from disk import write_whole
from errors import UserError, printable
from report.charts import Chart, svg_of

PICTURE_PX = 1400
"""Longest side of a picture in a page"""
QUALITY = 80
MARK = '<meta name="generator" content="permafrost">'
"""By which an earlier page is known"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5d6672; --paper: #f6f7f9; --card: #ffffff;
  --line: #dfe3e8; --accent: #2467b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #9aa5b1; --paper: #14171a; --card: #1c2024;
  --line: #31373e; --accent: #7db3f2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.notice { border: 1px solid var(--line); border-left: 6px solid var(--mark); border-radius: 8px; padding: 10px 14px;
  margin: 14px 0; background: var(--card); font-size: 16px; font-weight: 600; }
.bad { --mark: #d03030; }
.fair { --mark: #d98b00; }
.good { --mark: #2e9e4f; }
.legend span { display: inline-block; margin-right: 18px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 18px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.tile b { display: block; font-size: 21px; line-height: 1.3; }
.tile span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 12px; }
.card { padding: 10px 8px; min-width: 0; }
.card svg { display: block; width: 100%; height: auto; }
.card svg text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: break-word; max-width: 60ch; }
td:first-child { white-space: nowrap; max-width: none; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figure { margin: 0 0 18px; overflow-x: auto; }
figcaption { color: var(--soft); font-size: 13.5px; margin-bottom: 6px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  font-size: 12.5px; line-height: 1.45; margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); }
"""


def write_page(file: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of parts that are HTML.

    Raises:
        OSError: if it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(parts)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
{MARK}
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
    write_whole(file, page)


def refuse_lost_page(option: str, file: Path) -> None:
    """
    Raises:
        UserError: if `file` is there and is no earlier page, which alone is replaced.
    """
    if not file.exists():
        return
    try:
        with file.open("rb") as stream:
            earlier = MARK.encode() in stream.read(2000)
    except OSError:
        earlier = False
    if not earlier:
        raise UserError(
            f"{option} {file}: is there already, and no earlier page; name another file"
        )


def text(value: object, limit: int | None = None) -> str:
    """Text of others inside of a page."""
    return html.escape(printable(str(value), limit))


def heading(name: str, lines: Sequence[str] = ()) -> str:
    """A title with soft lines below."""
    told = "\n".join(f'<p class="soft">{text(line)}</p>' for line in lines)
    return f"<h1>{text(name)}</h1>\n{told}"


def notice(line: str, kind: Literal["bad", "fair", "good"] = "bad") -> str:
    """A line that nobody overlooks."""
    return f'<p class="notice {kind}">{text(line)}</p>'


def legend(colours: Mapping[str, tuple[int, int, int]]) -> str:
    """What colours in a picture mean, by name."""
    patches = [
        f'<span><i style="background: rgb{colour}"></i>{text(name, 60)}</span>'
        for name, colour in colours.items()
    ]
    return f'<p class="legend">{"".join(patches)}</p>' if patches else ""


def section(name: str, *parts: str) -> str:
    """Parts below a heading; nothing if they are empty."""
    there = [part for part in parts if part]
    return f"<section><h2>{text(name)}</h2>\n" + "\n".join(there) + "</section>" if there else ""


def tiles(values: Mapping[str, str]) -> str:
    """Large numbers with their names."""
    cells = [
        f'<div class="tile"><b>{text(v)}</b><span>{text(k)}</span></div>' for k, v in values.items()
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def charts(found: Iterable[tuple[str, Chart]]) -> str:
    """Charts beside each other, by names that the page has once."""
    cards = [f'<div class="card">{svg_of(chart, f"chart-{name}")}</div>' for name, chart in found]
    return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers stand at the right; what does not fit is scrolled."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    right = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    kinds = [' class="number"' if own else "" for own in right]
    head = "".join(
        f"<th{kind}>{text(name)}</th>" for kind, name in zip(kinds, columns, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{text(cell, 300)}</td>" for kind, cell in zip(kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: object) -> bool:
    return str(cell).replace(",", "").replace(".", "").replace("-", "").replace(
        " %", ""
    ).isdigit() or (str(cell) == "-")


def picture(file: Path, caption: str) -> str:
    """A picture made small, inside of the page; nothing if the file is not there or is none."""
    try:
        with Image.open(file) as image:
            return figure(image.convert("RGB"), caption)
    except (OSError, ValueError):
        return ""


def figure(image: Image.Image, caption: str) -> str:
    """A picture made small, inside of the page."""
    small = image.copy()
    small.thumbnail((PICTURE_PX, 4 * PICTURE_PX))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=QUALITY)
    data = base64.b64encode(content.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return (
        f"<figure><figcaption>{text(caption)}</figcaption>"
        f'<img {size} style="min-width: min(640px, {small.width}px)" alt="{text(caption)}" src="data:image/jpeg;base64,{data}"></figure>'
    )


def details(name: str, content: str) -> str:
    """Text as it is, shown when it is asked for."""
    return f"<details><summary>{text(name)}</summary><pre>{html.escape(content)}</pre></details>"
