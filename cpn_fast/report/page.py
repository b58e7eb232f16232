"""The report as HTML: sections from parts that are there, one file, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cpn_fast.report.pictures import Row, page_palette

COLUMNS = ("image", "ground truth", "CAM", "RCAM", "mask")

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16202c; --soft: #5b6776; --line: #dfe4ea;
  --c0: #2563c9; --c1: #d9730d; --c2: #1f8a57; --c3: #a23ab0; --c4: #b3263a; --c5: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --page: #10151c; --card: #18202a; --ink: #e8edf3; --soft: #9aa7b6;
  --line: #2c3846; --c0: #6ea8ff; --c1: #ffab5c; --c2: #5fd39a; --c3: #d58be0; --c4: #ff7d8c; --c5: #a5afbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 34px 0 10px; }
p { margin: 4px 0; max-width: 76ch; } .soft { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 16px; min-width: 120px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.charts { columns: 2 440px; column-gap: 14px; }
figure { margin: 0 0 14px; break-inside: avoid; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 12px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--soft); } svg .value { fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .mark { stroke: var(--soft); stroke-dasharray: 4 4; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.bar, .dot { stroke: none; }
.bar.c0, .dot.c0 { fill: var(--c0); } .bar.c1, .dot.c1 { fill: var(--c1); } .bar.c2, .dot.c2 { fill: var(--c2); }
.bar.c3, .dot.c3 { fill: var(--c3); } .bar.c4, .dot.c4 { fill: var(--c4); } .bar.c5, .dot.c5 { fill: var(--c5); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } th { text-align: left; color: var(--soft); font-weight: 500; }
.rows th, .rows td { padding: 4px 8px 4px 0; vertical-align: top; }
.rows img { display: block; border-radius: 6px; background: #000; max-width: none; }
.rows .name { font-size: 13px; min-width: 110px; overflow-wrap: anywhere; }
.grid th, .grid td { padding: 4px 22px 4px 0; border-bottom: 1px solid var(--line); }
.grid .figure { font-variant-numeric: tabular-nums; }
.chip { display: inline-flex; align-items: center; gap: 6px; margin: 0 12px 4px 0; white-space: nowrap;
  font-size: 13px; }
.chip i { width: 13px; height: 13px; border-radius: 4px; border: 1px solid var(--line); }
.settings { columns: 3 300px; column-gap: 28px; font-size: 13px; }
.settings div { display: flex; justify-content: space-between; gap: 12px; border-bottom: 1px solid var(--line);
  padding: 2px 0; break-inside: avoid; } .settings span:last-child { text-align: right; overflow-wrap: anywhere; }
.note { background: var(--card); border-left: 4px solid var(--c1); border-radius: 4px; padding: 8px 14px;
  margin: 8px 0; }
"""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>' + "\n".join(sections) + "</body></html>\n"
    )


def tiles(figures: Mapping[str, str]) -> str:
    """The headline figures: label -> value as text."""
    parts = [
        f'<div class="tile"><b>{escape(v)}</b><span class="soft">{escape(k)}</span></div>' for k, v in figures.items()
    ]
    return f'<div class="tiles">{"".join(parts)}</div>'


def note(text: str) -> str:
    """A sentence on what is missing and what to do."""
    return f'<p class="note">{escape(text)}</p>'


def charts(heading: str, drawn: Mapping[str, str], explanation: str = "") -> str:
    """A section of charts, caption -> SVG; empty ones are left out, and the section with them."""
    parts = [f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in drawn.items() if svg]
    if not parts:
        return ""
    text = f'<p class="soft">{escape(explanation)}</p>' if explanation else ""
    return f'<h2>{escape(heading)}</h2>{text}<div class="charts">{"".join(parts)}</div>'


def picture_rows(
    rows: Sequence[Row], classes: Sequence[str], explanation: str, all_columns: Sequence[str] = COLUMNS
) -> str:
    """The table of pictures, with a legend of the classes that are in it.

    Args:
        rows: the images.
        classes: the K foreground class names.
        explanation: what is to be seen.
        all_columns: names of pictures in their order; those that no row has are left out.
    """
    used = sorted({label for row in rows for label in row.labels})
    palette = page_palette()
    legend = "".join(_chip(classes[label], palette[label + 1].tolist()) for label in used)
    legend += _chip("background", [0, 0, 0]) + _chip("void", [255, 255, 255])
    columns = [name for name in all_columns if any(name in row.pictures for row in rows)]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(_table_row(row, columns, classes) for row in rows)
    return (
        f'<h2>Pictures</h2><p class="soft">{escape(explanation)}</p><p>{legend}</p>'
        f'<div class="scroll"><table class="rows"><tr><th></th>{head}</tr>{body}</table></div>'
    )


def _table_row(row: Row, columns: Sequence[str], classes: Sequence[str]) -> str:
    names = ", ".join(classes[label] for label in row.labels) or "no class"
    origin = "" if row.own_labels else " (found by the network: the image has no labels)"
    cells = [
        f'<td><img src="{row.pictures[name]}" alt="{escape(name)} of {escape(row.title, quote=True)}"></td>'
        if name in row.pictures
        else '<td class="soft">none</td>'
        for name in columns
    ]
    label = f'<td class="name"><b>{escape(row.title)}</b><br><span class="soft">{escape(names + origin)}</span></td>'
    return f"<tr>{label}{''.join(cells)}</tr>"


def table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]], explanation: str = "") -> str:
    """A section with one table of texts, the first column left-aligned and the others as figures."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>" + "".join(f'<td class="figure">{escape(c)}</td>' for c in row[1:]) + "</tr>"
        for row in rows
    )
    text = f'<p class="soft">{escape(explanation)}</p>' if explanation else ""
    return (
        f'<h2>{escape(heading)}</h2>{text}<div class="scroll"><table class="grid"><tr>{head}</tr>{body}</table></div>'
    )


def _chip(name: str, colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f'<span class="chip"><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>'


def settings(heading: str, values: Mapping[str, object]) -> str:
    """A list of names and values."""
    parts = [
        f'<div><span class="soft">{escape(k)}</span><span>{escape(str(v))}</span></div>' for k, v in values.items()
    ]
    return f'<h2>{escape(heading)}</h2><div class="settings">{"".join(parts)}</div>'
