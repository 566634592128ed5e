"""A process's metrics as one file, and all of a node's files merged into one page.

    <metrics>/<component>-<pid>-<start>-<random>.json   written again and again by one process, each time as a whole
    <metrics>/retired.json                              the sum of the counters of ended processes
    <metrics>/lock                                      held by whoever folds the former into the latter

Folding writes the new sum together with the names of the files in it, and only then removes the files. Killed in between,
the next one finds the names and does not add them again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_page
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

RETIRED = "retired.json"
# Tenants that have a series of their own on a node's page; the rest are one more, so that the page stays bounded.
MAX_TENANTS = 200
OTHER = "other"
TENANT = "tenant"

# A series: its sample's name and its labels, sorted.
Series = tuple[str, tuple[tuple[str, str], ...]]
# One observation among many: its trace, its value, and when it was, in seconds since 1970 UTC.
Example = tuple[str, float, float]
TRACE: Final = "trace_id"


@dataclass(slots=True)
class Family:
    """One metric: what it is, and the value of each of its series."""

    kind: str
    help: str
    series: dict[Series, float] = field(default_factory=dict)
    # The last traced observation of a bucket, where there is one.
    examples: dict[Series, Example] = field(default_factory=dict)


Families = dict[str, Family]


def collect(registry: CollectorRegistry) -> Families:
    """Return the metrics of a registry, without the times at which series were created."""
    families: Families = {}
    for metric in registry.collect():
        family = families[metric.name] = Family(metric.type, metric.documentation)
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                series = sample.name, tuple(sorted(sample.labels.items()))
                family.series[series] = sample.value
                if sample.exemplar is not None:
                    seen_at = float(sample.exemplar.timestamp or 0.0)
                    family.examples[series] = sample.exemplar.labels[TRACE], sample.exemplar.value, seen_at
    return families


def to_json(families: Families) -> list[Any]:
    """Return the metrics as plain JSON values; a series is its name, labels and value, and its example if it has one."""
    return [
        [name, f.kind, f.help, [[s, list(ls), v, *f.examples.get((s, ls), ())] for (s, ls), v in f.series.items()]]
        for name, f in families.items()
    ]


def from_json(document: Any) -> Families:
    """Return what `to_json` wrote; raises ValueError, TypeError or KeyError for anything else."""
    families: Families = {}
    for name, kind, text, series in document:
        family = families[str(name)] = Family(str(kind), str(text))
        for sample, labels, value, *example in series:
            which = str(sample), tuple((str(k), str(v)) for k, v in labels)
            family.series[which] = float(value)
            if example:
                trace, observed, seen_at = example
                family.examples[which] = str(trace), float(observed), float(seen_at)
    return families


def add(total: Families, part: Families, *, gauges: bool) -> None:
    """Add `part` to `total`, series by series; gauges only if they are of a live process."""
    for name, family in part.items():
        if family.kind == "gauge" and not gauges:
            continue
        into = total.setdefault(name, Family(family.kind, family.help))
        for series, value in family.series.items():
            into.series[series] = into.series.get(series, 0.0) + value
        for series, example in family.examples.items():
            into.examples[series] = max(example, into.examples.get(series, example), key=lambda e: e[2])


class SnapshotFile:
    """Where this process writes its metrics. The name is of this process alone, also when its id is used again."""

    def __init__(self, directory: Path, component: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid = os.getpid()
        self.path = directory / f"{component}-{self._pid}-{_started(self._pid) or 0}-{secrets.token_hex(4)}.json"
        self._last = b""

    def write(self, families: Families) -> None:
        """Replace the file as a whole, if anything changed. A forked child that inherited this object writes nothing."""
        data = json.dumps(to_json(families), separators=(",", ":")).encode()
        if data != self._last and os.getpid() == self._pid:
            _replace(self.path, data)
            self._last = data


def render(metrics_dir: Path, *, openmetrics: bool = False) -> bytes:
    """Return the node's metrics in Prometheus' text format: live processes, and the counters of ended ones.

    OpenMetrics' format, on top, leads from a bucket to the trace of one of its calls.

    Files of ended processes are folded on the way. A file that cannot be read is left out, and counted.
    """
    metrics_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(metrics_dir):
        total = _fold(metrics_dir)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(total))
    page: bytes = openmetrics_page(registry) if openmetrics else generate_latest(registry)  # type: ignore[no-untyped-call]
    return page


class _Page(Collector):
    """The merged families as prometheus-client wants them."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, family in sorted(self._families.items()):
            metric = Metric(name, family.help, family.kind)
            for (sample, labels), value in sorted(family.series.items(), key=_order):
                example = family.examples.get((sample, labels))
                exemplar = Exemplar({TRACE: example[0]}, example[1], example[2]) if example else None
                metric.add_sample(sample, dict(labels), value, exemplar=exemplar)
            yield metric


def _order(item: tuple[Series, float]) -> tuple[tuple[tuple[str, str], ...], str, float]:
    """Sort by labels and sample, and the buckets of one histogram by their bound."""
    (sample, labels), _ = item
    le = next((float(v) for k, v in labels if k == "le"), 0.0)
    return tuple(x for x in labels if x[0] != "le"), sample, le


def _fold(directory: Path) -> Families:
    """Fold the ended into the retired, and return the sum of the retired and the live."""
    retired, folded, tenants = _read_retired(directory / RETIRED)
    known = len(tenants)
    total: Families = {}
    processes = Family("gauge", "Processes of this node whose metrics are on this page.")
    unreadable = 0
    ended: list[Path] = []
    for path in sorted(directory.glob("*-*-*-*.json")):
        component, pid, started, _ = path.stem.rsplit("-", 3)
        if path.name in folded:
            ended.append(path)
            continue
        # Asked before reading: whoever is dead by now has written its last word.
        alive = pid.isdigit() and str(_started(int(pid)) or "") == started
        try:
            part = _bounded(from_json(json.loads(path.read_bytes())), tenants)
        except (ValueError, TypeError, KeyError):
            unreadable += 1
            continue
        except FileNotFoundError:
            continue
        if alive:
            add(total, part, gauges=True)
            series: Series = ("sovereign_processes", (("component", component),))
            processes.series[series] = processes.series.get(series, 0.0) + 1
        else:
            add(retired, part, gauges=False)
            ended.append(path)
    if ended or len(tenants) > known:
        document = {"families": to_json(retired), "folded": [p.name for p in ended], "tenants": list(tenants)}
        _replace(directory / RETIRED, json.dumps(document, separators=(",", ":")).encode())
        for path in ended:
            path.unlink(missing_ok=True)
    add(total, retired, gauges=False)
    total["sovereign_processes"] = processes
    name = "sovereign_metrics_unreadable_files"
    total[name] = Family("gauge", "Metrics files that could not be read.", {(name, ()): float(unreadable)})
    return total


def _read_retired(path: Path) -> tuple[Families, set[str], dict[str, None]]:
    try:
        document = json.loads(path.read_bytes())
        return from_json(document["families"]), set(document["folded"]), dict.fromkeys(document["tenants"])
    except FileNotFoundError:
        return {}, set(), {}
    except (ValueError, TypeError, KeyError):
        # Replaced as a whole, so it was damaged from outside: keep it for who looks into it, and count on.
        path.replace(path.with_suffix(".damaged"))
        return {}, set(), {}


def _bounded(families: Families, tenants: dict[str, None]) -> Families:
    """Return the families with every tenant beyond the first `MAX_TENANTS` of this node under one name."""
    for family in families.values():
        series: dict[Series, float] = {}
        for (sample, labels), value in family.series.items():
            kept = tuple((k, _tenant(v, tenants) if k == TENANT else v) for k, v in labels)
            series[sample, kept] = series.get((sample, kept), 0.0) + value
        family.series = series
    return families


def _tenant(name: str, tenants: dict[str, None]) -> str:
    if name not in tenants:
        if len(tenants) >= MAX_TENANTS:
            return OTHER
        tenants[name] = None
    return name


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did, or None if there is no such live process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    temporary.replace(path)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
