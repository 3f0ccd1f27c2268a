"""What a process says about its requests: OpenTelemetry spans; its logs are in `deepflow.logs`.

Spans cost a few microseconds a request and nothing a token. Without a collector configured no SDK
is imported; trace ids are still made and passed on, so that logs of all hops can be joined.
"""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from deepflow.logs import JsonFormatter as JsonFormatter
from deepflow.logs import configure_logging as configure_logging
from deepflow.logs import request_id_var as request_id_var
from deepflow.v1 import types_pb2 as types

# Of one batch, its retries included: also how long a collector that is away may hold up an end.
EXPORT_SECONDS_MAX = 3.0


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
        exporter = OTLPSpanExporter(
            endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS_MAX
        )
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

    def event(self, name: str, **attributes: str | int | float) -> None:
        """Something that happened once, at this moment."""
        if self._inner is not None:
            self._inner.add_event(name, attributes)

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
