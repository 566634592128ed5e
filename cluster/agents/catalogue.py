"""The tools that an agent may be granted, as LangChain tools whose work is done in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel, ConfigDict, Field

from cluster.agents.egress import EgressPolicy
from cluster.agents.sandbox import Sandbox, ToolLimits
from cluster.errors import ConfigurationError

# What goes back to the model, which pays for every word of it.
MAX_RESULT_CHARS = 32_000


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WebSearchArguments(_Arguments):
    """Arguments of web_search."""

    query: str = Field(min_length=1, max_length=500, description="What to search for, in a few words.")
    max_results: int = Field(5, ge=1, le=20, description="How many results to return, best first.")


class DataAnalysisArguments(_Arguments):
    """Arguments of data_analysis."""

    operation: Literal["sql", "describe", "group", "correlation", "trend"] | None = Field(
        None,
        description=(
            "sql: run `sql` on the table `data`; describe: statistics of every column; group: statistics of `column` for each "
            "`group_by`; correlation: Pearson's r of `x` and `y`; trend: the least-squares line of `y` over `x` or over the row. "
            "Without one: sql where `sql` is given, else describe."
        ),
    )
    rows: list[dict[str, Any]] | None = Field(None, max_length=50_000, description="The table as a list of objects.")
    csv: str | None = Field(None, max_length=900_000, description="The table as CSV text with a header line, instead of `rows`.")
    sql: str | None = Field(
        None, max_length=20_000, description="One SELECT in SQLite's dialect, with median(x) and stddev(x); the table is `data`."
    )
    column: str | None = Field(None, description="For group: the column of numbers.")
    group_by: str | None = Field(None, description="For group: the column that parts the rows.")
    x: str | None = Field(None, description="For correlation and trend: the first column.")
    y: str | None = Field(None, description="For correlation and trend: the second column.")


class ReportTable(_Arguments):
    """A table of a report."""

    columns: list[str] = Field(min_length=1, max_length=50)
    rows: list[list[str | int | float | None]] = Field(max_length=1_000)


class ReportSection(_Arguments):
    """A section of a report; its parts come in the order text, bullets, table."""

    heading: str = Field(min_length=1, max_length=300)
    text: str = Field("", max_length=50_000, description="Paragraphs, parted by blank lines.")
    bullets: list[str] = Field(default_factory=list, max_length=200)
    table: ReportTable | None = None


class ReportArguments(_Arguments):
    """Arguments of report_generation."""

    title: str = Field(min_length=1, max_length=300)
    summary: str = Field("", max_length=10_000)
    sections: list[ReportSection] = Field(default_factory=list, max_length=100)
    format: Literal["markdown", "html", "both"] = "markdown"


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """What the operator set for tools: the SearXNG-compatible search endpoint, or the folder of texts to search instead."""

    search_url: str = ""
    search_corpus: Path | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    description: str
    arguments: type[BaseModel]
    # What the operator's settings add to the model's arguments, and which folders the child may read.
    fixed: Callable[[ToolSettings], dict[str, Any]] = field(default=lambda _: {})
    folders: Callable[[ToolSettings], dict[str, Path]] = field(default=lambda _: {})


def _corpus(settings: ToolSettings) -> dict[str, Path]:
    if settings.search_url or settings.search_corpus is None:
        return {}
    return {"corpus": settings.search_corpus.absolute()}


CATALOGUE: Mapping[str, _Entry] = {
    "web_search": _Entry(
        "Search for texts about a question. Returns titles, addresses or paths, and snippets, best match first. "
        "Use it for facts that you do not have; cite the address or path of what you use.",
        WebSearchArguments,
        fixed=lambda s: {"search_url": s.search_url} if s.search_url else {},
        folders=_corpus,
    ),
    "data_analysis": _Entry(
        "Compute on a table exactly: SQL, statistics of columns, groups, correlation, linear trend. Give the table as rows or "
        "csv. Use it for every number that you report, instead of calculating yourself.",
        DataAnalysisArguments,
    ),
    "report_generation": _Entry(
        "Lay out a finished report from a title, a summary and sections with text, bullets and tables, as Markdown, as a "
        "standalone HTML page, or both.",
        ReportArguments,
    ),
}


def build_tools(
    granted: Sequence[str],
    *,
    sandbox: Sandbox,
    limits: ToolLimits | None = None,
    egress: EgressPolicy | None = None,
    settings: ToolSettings | None = None,
) -> list[BaseTool]:
    """Return the LangChain tools named in `granted`, in that order, each run in `sandbox` under `limits`.

    Takes what the agent may fetch and the operator's settings; the operator's search endpoint alone may be a private
    address. Raises ConfigurationError for a name that is not in the catalogue, letter by letter.
    """
    settings = settings or ToolSettings()
    egress = egress or EgressPolicy()
    return [_tool(name, sandbox, limits or ToolLimits(), egress, settings) for name in dict.fromkeys(granted)]


def _tool(name: str, sandbox: Sandbox, limits: ToolLimits, egress: EgressPolicy, settings: ToolSettings) -> BaseTool:
    entry = CATALOGUE.get(name)
    if entry is None:
        raise ConfigurationError(
            f"There is no tool {name[:100]!r}.", hint=f"The tools of this platform are: {', '.join(sorted(CATALOGUE))}."
        )
    fixed, folders = entry.fixed(settings), entry.folders(settings)
    if name == "web_search" and settings.search_url:
        parts = urlsplit(settings.search_url)
        egress = replace(egress, operator_origins=(*egress.operator_origins, f"{parts.scheme}://{parts.netloc}"))

    async def run(**arguments: Any) -> str:
        for path in folders.values():
            if not path.is_dir():
                raise ToolException(f"The folder {path} that SOVEREIGN_SEARCH_CORPUS names is not there.")
        given = {k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in arguments.items()}
        given = orjson.loads(orjson.dumps(given, default=_plain))
        done = await sandbox.run(name, given | fixed, limits, egress, folders)
        if done.error is not None:
            raise ToolException(done.error)
        text = orjson.dumps(done.result).decode()
        return text if len(text) <= MAX_RESULT_CHARS else text[:MAX_RESULT_CHARS] + "… (cut: ask for less)"

    return StructuredTool(
        name=name,
        description=entry.description,
        args_schema=entry.arguments,
        coroutine=run,
        handle_tool_error=True,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} is not JSON")
