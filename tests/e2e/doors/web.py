"""Knocking at HTTP ports: every route the gateway has, and what others leave open."""

import asyncio
import http.client
from collections.abc import Collection, Iterable, Mapping

from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# What frameworks, other servers of models and tools for debugging answer by habit.
COMMON = (
    *("/", "/v1", "/v1/", "/v1/admin", "/v1/admin/", "/admin", "/api", "/status", "/version"),
    *("/redoc", "/swagger", "/docs/", "/docs/oauth2-redirect", "/favicon.ico", "/robots.txt"),
    *("/debug", "/debug/pprof/", "/varz", "/connz", "/actuator", "/trace", "/.env"),
    *("/ping", "/load", "/server_info", "/get_server_info", "/is_sleeping", "/sleep", "/wake_up"),
    *("/start_profile", "/stop_profile", "/reset_prefix_cache", "/flush_cache", "/pause"),
    *("/v1/load_lora_adapter", "/update_weights", "/collective_rpc", "/generate", "/invocations"),
    *("/health/", "/health/../v1/models", "/health/%2e%2e/v1/models", "/ready/x", "/metrics/"),
    *("//v1/models", "/V1/models", "/v1/models/", "/v1//models", "/health;/v1/models"),
)
SHUT = (401, 403)
# Nothing is there, or nothing that could be used so.
NOT_FOUND, METHOD_NOT_ALLOWED = 404, 405
NOTHING = (NOT_FOUND, METHOD_NOT_ALLOWED)

Routes = Mapping[str, tuple[str, ...]]
Answers = dict[tuple[str, str], int]


def gateway_routes() -> Routes:
    """Path -> methods, from the gateway's own table; a path that takes a name has one."""

    async def read() -> Routes:
        server = GatewayServer(GatewayConfig(cluster_token="token"))
        try:
            return server.application.routes
        finally:
            await server.stop()

    routes = asyncio.run(read())
    return {(path + "x" if path.endswith("/") else path): it for path, it in routes.items()}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def knock(
    url: str, paths: Iterable[str], headers: dict[str, str], methods: Iterable[str] = METHODS
) -> Answers:
    """(method, path) -> status."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    answers: Answers = {}
    try:
        for path in paths:
            for method in methods:
                # Sends the path as it is: a client's own tidying up would knock elsewhere.
                connection.request(method, path, b"" if method == "GET" else b"{}", headers)
                reply = connection.getresponse()
                reply.read()
                answers[method, path] = reply.status
    finally:
        connection.close()
    return answers


def open_ones(answers: Answers, routes: Collection[str] = ()) -> set[str]:
    """Those with something behind them: a route that looked for its name, too."""
    return {
        f"{method} {path}"
        for (method, path), status in answers.items()
        if status not in (*SHUT, *NOTHING) or (status == NOT_FOUND and path in routes)
    }
