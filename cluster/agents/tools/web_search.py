"""A search through the operator's endpoint, or in a folder of texts. Runs in a sandboxed child; see child.py."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

MAX_RESULTS = 20
MAX_FILES = 5_000
MAX_FILE_BYTES = 1 << 20
MAX_CORPUS_BYTES = 64 << 20
_SUFFIXES = (".txt", ".md", ".rst", ".csv", ".json", ".html", ".log")


def run(arguments: dict[str, Any], host: Any) -> dict[str, Any]:
    """Return {"source", "results": [{"title", "url" or "path", "snippet"}]}, best first.

    Raises ValueError when neither is set up, or the endpoint answers something else.
    """
    query, limit = arguments["query"], min(int(arguments.get("max_results") or 5), MAX_RESULTS)
    url = arguments.get("search_url")
    if url:
        return {"source": "web", "results": _ask_endpoint(host, url, query, limit)}
    folder = host.folder("corpus")
    if folder is None:
        raise ValueError(
            "Nothing to search in is set up: set SOVEREIGN_SEARCH_URL to a SearXNG-compatible endpoint, "
            "or SOVEREIGN_SEARCH_CORPUS to a folder of text files."
        )
    return {"source": "corpus", "results": search_folder(folder, query, limit)}


def _ask_endpoint(host: Any, url: str, query: str, limit: int) -> list[dict[str, str]]:
    page = host.fetch(f"{url.rstrip('/')}{'&' if '?' in url else '?'}{urlencode({'q': query, 'format': 'json'})}")
    if page["status"] != 200:
        raise ValueError(f"The search endpoint answered {page['status']}.")
    try:
        found = json.loads(page["text"])["results"]
        return [
            {
                "title": str(r.get("title") or "")[:300],
                "url": str(r.get("url") or "")[:1000],
                "snippet": str(r.get("content") or "")[:500],
            }
            for r in found[:limit]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("The search endpoint's answer is not the JSON of a SearXNG-compatible search.") from None


def search_folder(folder: str, query: str, limit: int) -> list[dict[str, str]]:
    """Return the texts under `folder` that match, ranked by BM25 with titles weighing most: title, path below it, snippet."""
    words = re.findall(r"\w+", query.lower())[:32]
    if not words:
        raise ValueError("The query has no words.")
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE texts USING fts5(path UNINDEXED, title, body, tokenize = 'porter unicode61')")
    db.executemany("INSERT INTO texts VALUES (?, ?, ?)", _texts(folder))
    # Quoted: a word of the query is never an operator of the index. Any of the words, the rarer the better.
    wanted = " OR ".join(f'"{word}"' for word in words)
    rows = db.execute(
        "SELECT title, path, snippet(texts, 2, '', '', ' … ', 40) FROM texts "
        "WHERE texts MATCH ? ORDER BY bm25(texts, 0, 5, 1), path LIMIT ?",
        (wanted, limit),
    )
    return [{"title": t, "path": p, "snippet": " ".join(s.split())[:500]} for t, p, s in rows]


def _texts(folder: str) -> Iterator[tuple[str, str, str]]:
    files = total = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            # Not pathlib, here and below: importing it would be a third of this tool's start-up time.
            path = os.path.join(parent, name)  # noqa: PTH118
            if not name.lower().endswith(_SUFFIXES) or os.path.islink(path):  # noqa: PTH114
                continue
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read(MAX_FILE_BYTES)
            files, total = files + 1, total + len(data)
            if files > MAX_FILES or total > MAX_CORPUS_BYTES:
                raise ValueError(f"The corpus is larger than {MAX_FILES} files or {MAX_CORPUS_BYTES >> 20} MiB.")
            text = data.decode("utf-8", "replace")
            if name.lower().endswith(".html"):
                text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", text)
            first = next((line.strip("#= \t") for line in text.splitlines() if line.strip("#= \t")), name)
            yield os.path.relpath(path, folder), first[:300], text
