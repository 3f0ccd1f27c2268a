"""Driver "local": a client of this host's supervisor, over its Unix socket.

One JSON object a line each way. The watch has a connection of its own; so has every command,
because a stop is answered only when the process is gone.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from deepflow.background import end
from deepflow.errors import DeepFlowError, Unavailable
from deepflow.membership import kind_word
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.drivers.base import PodReport
from services.cluster_manager.reconcile.state import Kind

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 4 * 1024 * 1024
RETRY_SECONDS = 0.1
COMMAND_SECONDS = 10.0
KINDS: dict[str, Kind] = {kind_word(kind): kind for kind in types.MemberKind.values()}


class Row(msgspec.Struct):
    """One process as the supervisor lists it; fields that nobody needs here are left out."""

    name: str
    service: str
    state: str
    since_unix_ms: int
    pid: int | None = None


class Reply(msgspec.Struct):
    ok: bool
    error: str = ""
    processes: list[Row] = []


_decoder = msgspec.json.Decoder(Reply)


class LocalDriver:
    def __init__(self, socket: str, stop_grace_seconds: float) -> None:
        self._socket = socket
        self._stop_grace_seconds = stop_grace_seconds
        self._watching: asyncio.Task[None] | None = None
        self._reports: dict[str, PodReport] | None = None

    @property
    def reports(self) -> Mapping[str, PodReport] | None:
        return self._reports

    def start(self, on_change: Callable[[], None]) -> None:
        self._watching = asyncio.create_task(self._watch_forever(on_change))

    async def start_pod(
        self, kind: Kind, name: str, settings: Mapping[str, str], term: int
    ) -> None:
        command = {"op": "start", "service": kind_word(kind), "name": name, "term": term}
        await self._command(command | {"settings": dict(settings)}, COMMAND_SECONDS)

    async def stop_pod(self, name: str, term: int) -> None:
        if self._reports is not None and name not in self._reports:
            return
        grace = self._stop_grace_seconds
        command = {"op": "stop", "name": name, "grace_seconds": grace, "term": term}
        await self._command(command, grace + COMMAND_SECONDS)

    async def close(self) -> None:
        await end(self._watching)

    async def _watch_forever(self, on_change: Callable[[], None]) -> None:
        while True:
            try:
                await self._watch(on_change)
            except (OSError, DeepFlowError) as error:
                if self._reports is not None:
                    log.warning("the supervisor is away: %s", error)
            # What runs is not known now: nothing is started or stopped on old news.
            self._reports = None
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self, on_change: Callable[[], None]) -> None:
        async with self._connected() as (reader, writer):
            await _send(writer, {"op": "watch"})
            while True:
                reply = await _receive(reader)
                self._reports = read_reports(reply.processes)
                on_change()

    async def _command(self, command: dict[str, Any], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds), self._connected() as (reader, writer):
                await _send(writer, command)
                await _receive(reader)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the supervisor did not answer: {error!r}") from error

    @contextlib.asynccontextmanager
    async def _connected(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=LINE_BYTES_MAX)
        try:
            yield reader, writer
        finally:
            writer.close()


def read_reports(rows: list[Row]) -> dict[str, PodReport]:
    """The supervisor's list; processes of other services than ours are none of our pods."""
    return {row.name: _read_report(row) for row in rows if row.service in KINDS}


def _read_report(row: Row) -> PodReport:
    return PodReport(
        name=row.name,
        kind=KINDS[row.service],
        pid=row.pid or 0,
        is_running=row.state in ("running", "stopping"),
        is_stopping=row.state in ("stopping", "stopped"),
        since_unix_ms=row.since_unix_ms,
    )


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> Reply:
    try:
        line = await reader.readline()
        if not line:
            raise Unavailable("the supervisor closed the connection")
        reply = _decoder.decode(line)
    except (ValueError, msgspec.DecodeError) as error:  # too long a line, or not a reply
        raise Unavailable(f"the supervisor's answer cannot be read: {error}") from error
    if not reply.ok:
        raise Unavailable(reply.error or "the supervisor refused")
    return reply
