"""Spans: what was done on behalf of one request, as one tree across processes, by OpenTelemetry.

Off unless SOVEREIGN_OTLP_ENDPOINT is set: then nothing of OpenTelemetry is imported, and a span costs one comparison. Where a
process begins to work for another, the tree goes on under the `traceparent` (W3C) that it was given; within one process the
current span is OpenTelemetry's own, which tasks and `in_this_trace` carry along. Names and attributes are those of the semantic
conventions, generative AI included. No text of a prompt, an answer or an error is ever in a span.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from cluster.errors import ConfigurationError
from cluster.identity.secrets import usual_secrets
from cluster.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)
T = TypeVar("T")
Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool

# Spans that wait to be sent; more are dropped, because to wait for a sink would be to wait with a call.
MAX_WAITING: Final = 4096
SEND_INTERVAL_MS: Final = 500
SEND_TIMEOUT_S: Final = 3.0
# How long the end of a process waits for its last spans to be taken.
FLUSH_MS: Final = 1_000


class Span(Protocol):
    """What may be said of work while it goes on."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""
        ...

    def failed(self, kind: str) -> None:
        """Say that it failed, by the kind of the error alone."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty without tracing."""
        ...


class _NoSpan:
    """What a span is while tracing is off."""

    trace_id = ""

    def set(self, attributes: Mapping[str, Value]) -> None:
        pass

    def failed(self, kind: str) -> None:
        pass


class _Tracing:
    """What this process traces with; one for its life."""

    tracer: Tracer | None = None
    provider: TracerProvider | None = None


_NO_SPAN: Final[Span] = _NoSpan()
_NOTHING: Final[AbstractContextManager[Span]] = nullcontext(_NO_SPAN)


def configure_tracing(component: str, settings: Settings, dropped: Callable[[int], None] = lambda count: None) -> None:
    """Send this process's spans to the settings' sink from now on, if they name one; more than once is as once.

    `dropped` is told how many spans the sink did not take.
    """
    if not settings.otlp_endpoint or _Tracing.tracer is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class Sink(SpanExporter):
        """The sink, with one line in the log for each change of whether it takes spans, and not for each try."""

        def __init__(self, inner: SpanExporter) -> None:
            self._inner = inner
            self._away = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = self._inner.export(spans)
            away = result is not SpanExportResult.SUCCESS
            if away:
                dropped(len(spans))
            if away != self._away:
                self._away = away
                log.warning(
                    "traces %s at %s", "are lost: nobody takes them" if away else "are taken again", settings.otlp_endpoint
                )
            return result

        def shutdown(self) -> None:
            self._inner.shutdown()

    # It would say for each batch what the sink says once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    resource = Resource({"service.name": f"sovereign-{component}", "service.namespace": "sovereign"})
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=_headers(settings), timeout=SEND_TIMEOUT_S)
    sampler = ParentBased(TraceIdRatioBased(settings.trace_ratio))
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    batches = BatchSpanProcessor(Sink(exporter), max_queue_size=MAX_WAITING, schedule_delay_millis=SEND_INTERVAL_MS)
    provider.add_span_processor(batches)
    _Tracing.provider = provider
    _Tracing.tracer = provider.get_tracer("sovereign")
    atexit.register(flush)


def _headers(settings: Settings) -> dict[str, str]:
    """Return the headers that the collector wants; raises ConfigurationError when they can't be read."""
    if not settings.otlp_headers:
        return {}
    text = usual_secrets().resolve(settings.otlp_headers).reveal()
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise ConfigurationError(f"The secret {settings.otlp_headers} is not `name=value`, separated by commas.")
    return {name: value for name, _, value in pairs}


def flush() -> None:
    """Send what waits, for at most FLUSH_MS; called before a process ends by itself. Never raises."""
    if _Tracing.provider is not None:
        with contextlib.suppress(Exception):
            _Tracing.provider.force_flush(FLUSH_MS)


def span(
    name: str, *, kind: Kind = "internal", parent: str = "", attributes: Mapping[str, Value] | None = None
) -> AbstractContextManager[Span]:
    """Return a context in which a span is current; it ends with the context, and failed when the context raises.

    `parent` is the `traceparent` under which work that another process asked for goes on; without one the parent is the
    current span. `name` must be one of few, so no ids but an agent's, a model's or a tool's.
    """
    tracer = _Tracing.tracer
    return _NOTHING if tracer is None else _span(tracer, name, kind, parent, attributes)


def traceparent() -> str:
    """Return the current span as W3C has it in a header; empty without one."""
    if _Tracing.tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def in_this_trace(function: Callable[[], T]) -> Callable[[], T]:
    """Return `function` as it would run here, for a thread of a pool: the current span goes along."""
    if _Tracing.tracer is None:
        return function
    context = contextvars.copy_context()
    return lambda: context.run(function)


class _Recorded:
    """A span that OpenTelemetry keeps."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def trace_id(self) -> str:
        return f"{self._inner.get_span_context().trace_id:032x}"

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._inner.set_attributes(attributes)

    def failed(self, kind: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._inner.set_attribute("error.type", kind)
        self._inner.set_status(Status(StatusCode.ERROR))


@contextmanager
def _span(tracer: Tracer, name: str, kind: Kind, parent: str, attributes: Mapping[str, Value] | None) -> Iterator[Span]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    inner = tracer.start_span(name, context=context, kind=trace.SpanKind[kind.upper()], attributes=attributes)
    recorded = _Recorded(inner)
    try:
        with trace.use_span(inner, record_exception=False, set_status_on_exception=False):
            yield recorded
    except BaseException as e:
        # Its code where it has one: a message may hold what somebody said.
        recorded.failed(str(getattr(e, "code", "")) or type(e).__name__)
        raise
    finally:
        inner.end()
