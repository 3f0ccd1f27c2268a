"""What every route below /v1/admin/ shares; the gate let in none but holders of an admin key."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from deepflow.errors import InvalidRequest, Unavailable
from services.gateway.config import GatewayConfig
from services.gateway.http.exchange import Exchange
from services.gateway.schema.body import parse_object

BODY_BYTES_MAX = 64 * 1024
CALLS_MAX = 8
RETRY_AFTER_SECONDS = 1.0

log = logging.getLogger(__name__)


class Desk:
    """One for all admin routes: few calls at a time, small bodies, a line for each change."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._running = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the few that there are: each call may read all records, or wait for others."""
        if self._running >= CALLS_MAX:
            raise Unavailable(
                "too many calls of admin routes at one time; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def body(self, exchange: Exchange) -> dict[str, Any]:
        bytes_max = min(BODY_BYTES_MAX, self._config.body_bytes_max)
        return parse_object(await exchange.read_json_bytes(bytes_max), self._config.json_depth_max)

    def changed(self, exchange: Exchange, what: str) -> None:
        """Who did what, once it is done; never a secret."""
        caller = exchange.caller
        log.info(
            "%s: %s",
            caller.key_id,
            what,
            extra={"audit": what, "key": caller.key_id, "request_id": exchange.request_id},
        )


def query_words(exchange: Exchange, known: tuple[str, ...]) -> dict[str, str]:
    """The query's words; of one given twice the last counts."""
    words = {name: given[-1] for name, given in parse_qs(exchange.query).items()}
    refuse_unknown(words, known)
    return words


def refuse_unknown(given: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"{name[:64]!r} is not known here; there are: {', '.join(known)}",
                param=name[:64],
                reason="unknown_field",
            )
