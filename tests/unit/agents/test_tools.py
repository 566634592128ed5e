"""What the shipped tools compute and write, as functions; that they run in a child is tested elsewhere."""

from __future__ import annotations

import html.parser
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.agents.tools import data_analysis, report_generation, web_search
from tests.sizes import soak

SALES = "region;price;units\nnorth;10;1\nnorth;20;2\nsouth;30;\nsouth;40;4\n"


def analyse(**arguments: Any) -> dict[str, Any]:
    return data_analysis.run(arguments, None)


def test_sql_over_csv_and_rows() -> None:
    """A SELECT with the statistical aggregates runs over either form of table."""
    got = analyse(csv=SALES, sql="SELECT region, sum(price), median(price), stddev(price) FROM data GROUP BY region")
    assert got["rows"] == [["north", 30, 15.0, pytest.approx(7.0710678)], ["south", 70, 35.0, pytest.approx(7.0710678)]]
    got = analyse(rows=[{"a": 1}, {"b": "x", "a": True}], operation="sql", sql="SELECT a, b FROM data")
    assert got == {"columns": ["a", "b"], "rows": [[1, None], [1, "x"]], "truncated": False}


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH '/tmp/x.db' AS x",
        "DELETE FROM data",
        "DROP TABLE data",
        "SELECT load_extension('x')",
        "SELECT 1; SELECT 2",
        "PRAGMA query_only = OFF",
        "SELECT nothing FROM data",
        "SELEC",
        "",
    ],
)
def test_sql_only_reads_the_table(sql: str) -> None:
    """Anything but one SELECT over the table is refused with words that help."""
    with pytest.raises(ValueError, match=r"query failed|needs a query|returns no rows"):
        analyse(csv=SALES, operation="sql", sql=sql)


def test_long_results_are_cut() -> None:
    """A result has at most 500 rows, and says when there were more."""
    got = analyse(rows=[{"n": n} for n in range(600)], sql="SELECT n FROM data")
    assert (len(got["rows"]), got["truncated"]) == (500, True)


def test_statistics_agree_with_numpy() -> None:
    """Mean, deviation, quantiles, correlation and trend equal an independent implementation's on random tables."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(soak(30, 1000)):
        a = [rng.uniform(-1e6, 1e6) for _ in range(rng.randint(2, 60))]
        b = [x * 3 + rng.gauss(0, 1e5) for x in a]
        got = analyse(rows=[{"a": x, "b": y} for x, y in zip(a, b, strict=True)])["columns"]["a"]
        expected = [statistics.fmean(a), statistics.stdev(a), *np.quantile(a, [0.25, 0.5, 0.75, 0.95])]
        assert [got[k] for k in ("mean", "stddev", "p25", "median", "p75", "p95")] == pytest.approx(expected), seed
        table = [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]
        trend = analyse(rows=table, operation="trend", x="a", y="b")["trend"]
        assert [trend["slope"], trend["intercept"]] == pytest.approx(list(np.polyfit(a, b, 1)), rel=1e-4, abs=1e-2), seed
        correlation = analyse(rows=table, operation="correlation", x="a", y="b")["correlation"]
        assert correlation == pytest.approx(float(np.corrcoef(a, b)[0, 1])), seed


def test_describe_and_group() -> None:
    """Columns of text and gaps are described as such; groups carry their own statistics."""
    got = analyse(csv=SALES)
    assert got["row_count"] == 4
    assert got["columns"]["units"]["missing"] == 1
    assert got["columns"]["region"]["most_common"] == [{"value": "north", "count": 2}, {"value": "south", "count": 2}]
    got = analyse(csv=SALES, operation="group", group_by="region", column="price")
    assert got["rows"] == [["north", 2, 30.0, 15.0, 15.0, 10, 20], ["south", 2, 70.0, 35.0, 35.0, 30, 40]]
    trend = analyse(csv=SALES, operation="trend", y="price")["trend"]
    assert (trend["slope"], trend["intercept"]) == (10.0, 10.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either as rows"),
        ({"rows": [], "csv": "a"}, "either as rows"),
        ({"rows": []}, "no rows"),
        ({"rows": [1]}, "Row 1 is not an object"),
        ({"rows": [{"a": [1]}]}, "only numbers, text and null"),
        ({"csv": "a,b\n1,2,3\n"}, "more values than"),
        ({"csv": ",b\n1,2\n"}, "name every column"),
        ({"csv": SALES, "operation": "trend", "y": "cost"}, "the columns are: region, price, units"),
        ({"csv": SALES, "operation": "group", "group_by": "price", "column": "region"}, "has no numbers"),
        ({"csv": SALES, "operation": "magic"}, "no operation 'magic'"),
        ({"rows": [{"n": 1}] * 50_001}, "at most 50000"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], words: str) -> None:
    """Each mistake is told in a sentence that names it."""
    with pytest.raises(ValueError, match=words):
        analyse(**arguments)


def test_numbers_at_the_edge() -> None:
    """Huge integers, constants and non-numbers neither crash nor pretend."""
    assert analyse(rows=[{"n": 10**30}, {"n": 1}], sql="SELECT max(n) FROM data")["rows"] == [[1e30]]
    assert analyse(rows=[{"x": 1, "y": 2}, {"x": 1, "y": 3}], operation="correlation", x="x", y="y")["correlation"] is None
    assert analyse(csv="v\nnan\ninf\n1\n")["columns"]["v"]["type"] == "text"


SECTIONS = [
    {
        "heading": "Risks & <b>chances</b>",
        "text": "First.\n\nSecond <script>alert(1)</script> [x](javascript:1) | pipe",
        "bullets": ["# not a heading", "1. not a list"],
        "table": {"columns": ["a|b", "n"], "rows": [["<i>", 1234567], [None, 1.5]]},
    }
]


def test_report_in_markdown() -> None:
    """The parts come in order, and no text of theirs becomes markup."""
    got = report_generation.run({"title": "T *x*", "summary": "S", "sections": SECTIONS}, None)["markdown"]
    assert got.startswith("# T \\*x\\*\n\nS\n\n## Risks & \\<b\\>chances\\</b\\>\n\nFirst.\n\nSecond \\<script\\>")
    assert "- \\# not a heading\n- 1\\. not a list" in got
    assert "| a\\|b | n |\n| --- | --- |\n| \\<i\\> | 1,234,567 |\n|  | 1.5 |" in got


def test_report_in_html() -> None:
    """The page stands alone, and every text in it is text."""

    class Tags(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.tags.append(tag)

        def handle_data(self, data: str) -> None:
            self.text += data

    page = report_generation.run({"title": "T", "sections": SECTIONS, "format": "both"}, None)["html"]
    parser = Tags()
    parser.feed(page)
    assert {"h1", "h2", "table", "ul"} <= set(parser.tags)
    assert not {"script", "b", "i", "a", "img", "link"} & set(parser.tags)
    assert "Second <script>alert(1)</script>" in parser.text


def test_report_refuses_what_does_not_fit() -> None:
    """A ragged table and an unknown format are named."""
    ragged = [{"heading": "h", "table": {"columns": ["a"], "rows": [[1, 2]]}}]
    with pytest.raises(ValueError, match="Section 1: a row has 2 cells"):
        report_generation.run({"title": "T", "sections": ragged}, None)
    with pytest.raises(ValueError, match="no format 'pdf'"):
        report_generation.run({"title": "T", "format": "pdf"}, None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "tea.md").write_text("# The tea market\n\nTea prices rose in spring.")
    (tmp_path / "deep" / "coffee.txt").write_text("Coffee\nCoffee is traded beside tea at the harbour.")
    (tmp_path / "page.html").write_text("<html><script>tea tea tea tea</script><p>Cocoa only</p></html>")
    (tmp_path / "secret.bin").write_text("tea")
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    return tmp_path


def test_search_ranks_titles_first(corpus: Path) -> None:
    """Matches come best first, with the path below the folder; links, binaries and scripts are not searched."""
    got = web_search.search_folder(str(corpus), "tea prices", 5)
    assert [r["path"] for r in got] == ["tea.md", "deep/coffee.txt"]
    assert got[0]["title"] == "The tea market"
    assert "Tea prices rose" in got[0]["snippet"]
    assert web_search.search_folder(str(corpus), "root", 5) == []


@pytest.mark.parametrize("query", ['tea" OR path:*', "tea AND (", "NEAR(tea", "tea*", "-tea", "body:tea"])
def test_a_query_has_no_operators(corpus: Path, query: str) -> None:
    """Words are words, whatever signs stand between them."""
    assert web_search.search_folder(str(corpus), query, 5)[0]["path"] == "tea.md"


def test_a_query_needs_words(corpus: Path) -> None:
    """Signs alone are no query."""
    with pytest.raises(ValueError, match="no words"):
        web_search.search_folder(str(corpus), "?!", 5)
