"""The ASGI application: finds the handler, and turns whatever it raises into an answer."""

import logging
from collections.abc import Awaitable, Callable

from deepflow import clock
from deepflow.errors import Cancelled, DeepFlowError, Internal, InvalidRequest, NotFound
from deepflow.telemetry import request_id_var
from services.gateway import metrics
from services.gateway.auth.gate import Gate
from services.gateway.http.exchange import Exchange, Receive, Scope, Send

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]

METHOD_NOT_ALLOWED = 405

# Asked every few seconds by machines: their log lines would bury the others.
PROBES = ("/health", "/ready", "/metrics")


class Application:
    """`routes` maps a path to its methods ("GET POST") and handler.

    A path that ends in "/" takes a name.
    """

    def __init__(self, routes: dict[str, tuple[str, Handler]], gate: Gate) -> None:
        self._gate = gate
        self._routes = routes
        self._prefixes = [path for path in routes if path.endswith("/")]
        self.in_flight = 0

    @property
    def routes(self) -> dict[str, tuple[str, ...]]:
        """Path -> methods."""
        return {path: tuple(methods.split()) for path, (methods, _) in self._routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        started = clock.monotonic()
        route = self._route(exchange.path)
        self.in_flight += 1
        metrics.IN_FLIGHT.inc()
        try:
            await self._answer(exchange, route)
        finally:
            self.in_flight -= 1
            metrics.IN_FLIGHT.dec()
            metrics.REQUESTS.labels(route or "none", exchange.status).inc()
            if reason := exchange.notes.get("error"):
                metrics.ERRORS.labels(reason).inc()
            _log_request(exchange, route, clock.monotonic() - started)

    async def _answer(self, exchange: Exchange, route: str) -> None:
        try:
            exchange.adopt_request_id()
            request_id_var.set(exchange.request_id)
            exchange.caller = await self._gate.admit(exchange)
            if not route:
                raise NotFound(
                    f"there is nothing at {exchange.path[:128]}; see /docs",
                    reason="route_not_found",
                )
            method, handler = self._routes[route]
            allowed = tuple(_with_head(method).split())
            if exchange.method not in allowed:
                await _refuse_method(exchange, allowed)
                return
            await handler(exchange)
        except DeepFlowError as error:
            await _fail(exchange, error)
        except Exception:  # the top of every request: it fails alone
            log.exception("request %s failed", exchange.request_id)
            await _fail(exchange, Internal("something went wrong on our side; it was logged"))

    def _route(self, path: str) -> str:
        if path in self._routes and not path.endswith("/"):
            return path
        for prefix in self._prefixes:
            if path.startswith(prefix) and len(path) > len(prefix):
                return prefix
        return ""


def _with_head(methods: str) -> str:
    """Whatever can be read can be asked for its head alone; the protocol leaves the body out."""
    return methods.replace("GET", "GET HEAD")


def name_in(exchange: Exchange, prefix: str) -> str:
    return exchange.path[len(prefix) :]


async def _refuse_method(exchange: Exchange, allowed: tuple[str, ...]) -> None:
    usual = " or ".join(method for method in allowed if method != "HEAD")
    error = InvalidRequest(
        f"{exchange.method} is not allowed at {exchange.path[:128]}; use {usual}",
        reason="method_not_allowed",
    )
    allow = (b"allow", ", ".join(allowed).encode())
    await exchange.respond_error(error, allow, status=METHOD_NOT_ALLOWED)


async def _fail(exchange: Exchange, error: DeepFlowError) -> None:
    if not exchange.is_started:
        # A client that went away reads nothing; the status is for the log.
        exchange.notes["error"] = error.reason
        await exchange.respond_error(error)
        return
    exchange.notes.setdefault("error", error.reason)
    if not isinstance(error, Cancelled):
        exchange.abort()


def _log_request(exchange: Exchange, route: str, seconds: float) -> None:
    log.log(
        logging.DEBUG if route in PROBES else logging.INFO,
        "%s %s %d",
        exchange.method,
        route or "(no route)",
        exchange.status,
        extra={"status": exchange.status, "ms": round(seconds * 1000, 2), **exchange.notes},
    )
