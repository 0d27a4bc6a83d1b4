"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1000px;margin:2.5rem auto;padding:0 1.25rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
p{color:#555;margin:.2rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .9rem;border-bottom:1px solid #e4e4e4;text-align:right}
th{font-weight:600;color:#555;border-bottom-color:#999}
th:first-child,td:first-child{text-align:left;padding-left:0}
table.config td{text-align:left}table.config td+td{font-family:ui-monospace,monospace;font-size:.9em}
table.config td.section{font-weight:600;padding-top:.9rem;font-family:inherit}
i{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
img{max-width:100%;height:auto}
"""


def render(title: str, intro: str, tables: Mapping[str, str], plots: Mapping[str, Path], config: str) -> str:
    """Return the page.

    Args:
        title: heading.
        intro: one sentence.
        tables: HTML tables by heading.
        plots: PNG files by heading; they are embedded.
        config: HTML table of the configuration.
    """
    parts = [f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>"]
    parts += [f"<h2>{escape(heading)}</h2>{table}" for heading, table in tables.items()]
    for heading, path in plots.items():
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{escape(heading)}</h2><img alt="{escape(heading)}" src="data:image/png;base64,{data}">')
    parts.append(f"<h2>Configuration</h2>{config}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], colors: Sequence[str] | None = None) -> str:
    """Return an HTML table; with `colors`, every row begins with a dot."""
    dots = [f'<i style="background:{color}"></i>' for color in colors] if colors else [""] * len(rows)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><td>{dot}{escape(row[0])}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for dot, row in zip(dots, rows, strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def config_table(config: Mapping[str, Any]) -> str:
    """Return the sections of a recipe as an HTML table."""
    return f'<table class="config">{"".join(_config_rows(config))}</table>'


def _config_rows(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield f'<tr><td class="section" colspan="2">{escape(name)}</td></tr>'
            for key, item in value.items():
                yield f"<tr><td>{escape(key)}</td><td>{escape(_text(item))}</td></tr>"
        else:
            yield f"<tr><td>{escape(name)}</td><td>{escape(_text(value))}</td></tr>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "–"
    return str(value)
