"""What a process says about itself: structured logs, Prometheus metrics, OpenTelemetry spans.

Spans cost a few microseconds a request and nothing a token. Without a collector configured no SDK
is imported; trace ids are still made and passed on, so that logs of all hops can be joined.
"""

import contextlib
import contextvars
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any

from deepflow.v1 import types_pb2 as types

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra={…}` fields become keys."""

    def __init__(self, service: str, member_id: str) -> None:
        super().__init__()
        self._base = {"service": service, "id": member_id}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._base,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := request_id_var.get():
            line["request_id"] = request_id
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(service: str, member_id: str, *, level: str, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(service, member_id))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s")
        )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("httpx").setLevel(logging.WARNING)


class Tracing:
    """Starts spans and, where a collector is configured, exports them."""

    def __init__(self, service: str, otlp_endpoint: str = "") -> None:
        self._provider: Any = None
        self._tracer: Any = None
        if otlp_endpoint:
            self._connect(service, otlp_endpoint)

    def _connect(self, service: str, endpoint: str) -> None:
        # Late: the SDK and its exporter take a third of a second to import.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": f"deepflow-{service}"})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("deepflow")

    @contextlib.contextmanager
    def span(
        self, name: str, parent: types.TraceContext | None = None, **attributes: str | int | float
    ) -> Iterator["Span"]:
        span = self.start(name, parent, **attributes)
        try:
            yield span
        except BaseException as error:
            span.fail(str(error) or type(error).__name__)
            raise
        finally:
            span.end()

    def start(
        self, name: str, parent: types.TraceContext | None = None, **attributes: str | int | float
    ) -> "Span":
        """A span that its holder ends; give its `.context` to the next hop."""
        if self._tracer is None:
            return Span(_pass_on(parent), None)
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        carrier = (
            {"traceparent": parent.traceparent, "tracestate": parent.tracestate} if parent else {}
        )
        inner = self._tracer.start_span(
            name, context=propagator.extract(carrier), attributes=attributes
        )
        return Span(_context_of(inner), inner)

    def close(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()


class Span:
    """One timed piece of a request's story."""

    __slots__ = ("_inner", "context")

    def __init__(self, context: types.TraceContext, inner: Any) -> None:
        self.context = context
        self._inner = inner

    @property
    def trace_id(self) -> str:
        return self.context.traceparent.split("-")[1]

    def set(self, **attributes: str | int | float) -> None:
        if self._inner is not None:
            self._inner.set_attributes(attributes)

    def fail(self, message: str) -> None:
        if self._inner is not None:
            from opentelemetry.trace import Status, StatusCode

            self._inner.set_status(Status(StatusCode.ERROR, message))

    def end(self) -> None:
        if self._inner is not None:
            self._inner.end()


def _pass_on(parent: types.TraceContext | None) -> types.TraceContext:
    if parent is not None and parent.traceparent:
        return parent
    return types.TraceContext(traceparent=f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01")


def _context_of(span: Any) -> types.TraceContext:
    context = span.get_span_context()
    return types.TraceContext(
        traceparent=f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
        tracestate=context.trace_state.to_header(),
    )
