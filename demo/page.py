"""The page: one HTML file with all chapters, their tables and pictures inside, that opens anywhere."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what writes the page needs no JAX
    import pandas as pd

    from demo.report import Chapter, Table

LEGEND = """\
bound         the objective over the last tenth of the steps (nats)
log evidence  importance sampling from the fitted guide (nats)
max shift     largest difference from the first row's posterior means over all continuous sites, in the
              first row's posterior sds
min sd        narrowest posterior sd of any continuous site, the first row's being 1
IS ESS        effective sample size of the guide's draws as an importance sample; k-hat: its tail, good
              under 0.7
R-hat         the largest: between chains for samplers, between independent restarts for the others
"""

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2.5rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.9rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.4rem; margin-top: 3.2rem; border-top: 2px solid #0072b2; padding-top: 0.9rem; }
p, li { max-width: 46rem; } .lead { color: #555; font-size: 1.05rem; }
.finding { border-left: 4px solid #d55e00; padding-left: 0.9rem; }
img { width: 100%; margin: 0.6rem 0 0; }
figcaption, caption { color: #555; font-size: 0.88rem; text-align: left; }
figure { margin: 1.2rem 0; } .scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.4rem; }
th, td { padding: 0.28rem 0.75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1.5px solid #222; font-weight: 600; }
tbody tr:nth-child(even) { background: #f5f7f9; }
details { margin: 0.4rem 0; } summary { cursor: pointer; color: #0072b2; }
pre { font-size: 0.8rem; color: #555; }
"""


@dataclass
class Told:
    """A chapter as text: for the terminal, and ``section`` for the page; ``files`` are the runs saved beside
    it.
    """

    name: str
    title: str
    finding: str
    tables: str
    section: str
    files: int


def told(chapter: Chapter) -> Told:
    tables = "\n".join(map(str, chapter.tables))
    return Told(chapter.name, chapter.title, chapter.finding, tables, _section(chapter), len(chapter.runs))


def write_page(path: Path, chapters: list[Told], seconds: float) -> None:
    """Write the HTML file."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        "content='width=device-width'>",
        f"<title>ppl_ext: the demo</title><style>{_STYLE}</style></head><body>",
        "<h1>One model, any inference</h1>",
        "<p class='lead'>Each chapter takes real data and a model written once, as an ordinary NumPyro "
        "function, and runs more than one algorithm on it. Everything below was computed by <code>make "
        f"demo</code>, in {seconds:.0f} seconds.</p><ol>",
        *(f"<li><a href='#{c.name}'>{escape(c.title)}</a>. {escape(c.finding)}</li>" for c in chapters),
        "</ol>",
        *(c.section for c in chapters),
        "<h2>The columns</h2>",
        f"<pre>{escape(LEGEND)}</pre></body></html>",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _section(chapter: Chapter) -> str:
    parts = [
        f"<h2 id='{chapter.name}'>{escape(chapter.title)}</h2>",
        f"<p class='finding'>{escape(chapter.finding)}</p>",
    ]
    parts += [f"<p>{escape(text)}</p>" for text in chapter.story]
    parts += [
        f"<figure><img alt='{escape(chapter.caption, quote=True)}' "
        f"src='data:image/png;base64,{_png(chapter.picture)}'>"
    ]
    parts += [f"<figcaption>{escape(chapter.caption)}</figcaption></figure>"]
    parts += [_table(table) for table in chapter.tables]
    for name, summary in chapter.summaries.items():
        parts.append(
            f"<details><summary>ArviZ's summary of {escape(name)}</summary>{_frame(summary)}</details>"
        )
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    caption = f"<caption>{escape(table.title)}</caption>"
    return (
        "<div "
        f"class='scroll'><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _frame(frame: pd.DataFrame) -> str:
    return f"<div class='scroll'>{frame.to_html(border=0)}</div>"


def _png(figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return base64.b64encode(stream.getvalue()).decode()
