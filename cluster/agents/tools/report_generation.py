"""A report from its parts, as Markdown and as one standalone HTML page. Runs in a sandboxed child; see child.py."""

from __future__ import annotations

import re
from typing import Any

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #bbb;padding:.3rem .6rem;text-align:left}"
    "th{background:#f2f2f2}.summary{border-left:4px solid #888;padding-left:1rem}"
)


def run(arguments: dict[str, Any], host: Any) -> dict[str, Any]:
    """Return {"markdown"} or {"html"} or both, as `format` ("markdown", "html", "both") asks; raises ValueError."""
    title, summary, sections = arguments["title"], arguments.get("summary") or "", arguments.get("sections") or []
    for number, section in enumerate(sections, 1):
        _check_table(section.get("table"), number)
    wanted = arguments.get("format") or "markdown"
    report: dict[str, Any] = {}
    if wanted in ("markdown", "both"):
        report["markdown"] = markdown(title, summary, sections)
    if wanted in ("html", "both"):
        report["html"] = html_page(title, summary, sections)
    if not report:
        raise ValueError(f"There is no format {wanted!r}; use markdown, html or both.")
    return report


def _check_table(table: dict[str, Any] | None, number: int) -> None:
    if table is not None:
        for row in table["rows"]:
            if len(row) != len(table["columns"]):
                raise ValueError(f"Section {number}: a row has {len(row)} cells, and the table {len(table['columns'])} columns.")


def markdown(title: str, summary: str, sections: list[dict[str, Any]]) -> str:
    """Return the report as CommonMark with GitHub's tables; text is escaped, so that it says what it says."""
    parts = [f"# {_md(title)}"]
    if summary:
        parts.append(_md(summary))
    for section in sections:
        parts.append(f"## {_md(section['heading'])}")
        if section.get("text"):
            parts.append("\n\n".join(_md(p) for p in paragraphs(section["text"])))
        if section.get("bullets"):
            parts.append("\n".join(f"- {_md(b)}" for b in section["bullets"]))
        if section.get("table"):
            columns, rows = section["table"]["columns"], section["table"]["rows"]
            lines = [columns, ["---"] * len(columns), *rows]
            cells = [[c if n == 1 else _md(_text(c)) for c in line] for n, line in enumerate(lines)]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in cells))
    return "\n\n".join(parts) + "\n"


def html_page(title: str, summary: str, sections: list[dict[str, Any]]) -> str:
    """Return the report as one HTML page that loads nothing and runs nothing; every text in it is escaped."""
    parts = [f"<h1>{_esc(title)}</h1>"]
    if summary:
        parts.append(f'<p class="summary">{_esc(summary)}</p>')
    for section in sections:
        parts.append(f"<section><h2>{_esc(section['heading'])}</h2>")
        parts += [f"<p>{_esc(p)}</p>" for p in paragraphs(section.get("text") or "")]
        if section.get("bullets"):
            parts.append("<ul>" + "".join(f"<li>{_esc(b)}</li>" for b in section["bullets"]) + "</ul>")
        if section.get("table"):
            head = "".join(f"<th>{_esc(_text(c))}</th>" for c in section["table"]["columns"])
            body = "".join("<tr>" + "".join(f"<td>{_esc(_text(c))}</td>" for c in r) + "</tr>" for r in section["table"]["rows"])
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        parts.append("</section>")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_esc(title)}</title><style>{_STYLE}</style></head>\n<body>" + "\n".join(parts) + "</body></html>\n"
    )


def paragraphs(text: str) -> list[str]:
    """Return the non-empty paragraphs of `text`, which blank lines part."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def _text(cell: Any) -> str:
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _esc(text: str) -> str:
    return "".join(_HTML.get(c, c) for c in text if c in "\n\t" or c >= " ")


def _md(text: str) -> str:
    # Everything that could start a link, an image, HTML, a table cell or a list is taken as text.
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", one_line)
    escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
    return re.sub(r"^([#+~=-])", r"\\\1", escaped)
