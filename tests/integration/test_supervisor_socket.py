"""The supervisor's socket: what it answers, and what it refuses."""

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepflow.errors import Unavailable
from deepflow.local.client import NoStack, SupervisorClient
from deepflow.local.data_dir import DataDir
from deepflow.local.errors import StackError
from deepflow.local.messages import LINE_BYTES_MAX
from deepflow.local.process import ProcessSpec
from deepflow.local.restart_policy import RestartPolicy
from deepflow.local.socket import ControlSocket, Face
from deepflow.local.supervisor import Supervisor
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.drivers.local import LocalDriver
from tests.servers import until

SLEEP = "import time; time.sleep(600)"


@dataclass
class House:
    """A supervisor behind its socket; what it starts are sleepers."""

    data: DataDir
    supervisor: Supervisor
    launched: list[tuple[str, str, dict[str, Any]]]
    shutdown: asyncio.Event

    def launch(self, service: str, name: str, settings: dict[str, Any]) -> ProcessSpec:
        self.launched.append((service, name, settings))
        command = (sys.executable, "-c", SLEEP)
        return ProcessSpec(name, service, command, dict(os.environ), self.data.log_file(name))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    data = DataDir(tmp_path)
    supervisor = Supervisor(RestartPolicy(first_seconds=0.01))
    house = House(data, supervisor, [], asyncio.Event())

    async def cluster() -> dict[str, Any]:
        return {"members": [], "deployments": []}

    face = Face(
        supervisor, house.launch, lambda: {"supervisor_pid": 1}, cluster, house.shutdown.set
    )
    socket = ControlSocket(data.socket, face)
    await socket.start()
    try:
        yield house
    finally:
        supervisor.kill()
        await supervisor.shutdown()
        await socket.close()
        assert not data.socket.exists()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, line: bytes) -> None:
        self.writer.write(line + b"\n")
        await self.writer.drain()

    async def receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(self.reader.readline(), 60))
        return answer

    async def ask(self, **fields: Any) -> dict[str, Any]:
        await self.send(json.dumps(fields).encode())
        return await self.receive()


@contextlib.asynccontextmanager
async def connected(house: House) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(str(house.data.socket))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_socket_is_the_owners_alone(house: House) -> None:
    assert stat.S_IMODE(house.data.socket.stat().st_mode) == 0o600


async def test_start_list_stop(house: House) -> None:
    start = {"op": "start", "service": "task_executor", "name": "te-0", "settings": {"a": "b"}}
    async with connected(house) as client:
        assert (await client.ask(**start))["ok"]
        assert (await client.ask(**start))["ok"]
        assert house.launched[0] == ("task_executor", "te-0", {"a": "b"})
        await until(lambda: house.supervisor.get("te-0").pid is not None, what="the child")
        (row,) = (await client.ask(op="list"))["processes"]
        assert set(row) == {
            "name",
            "service",
            "pid",
            "state",
            "since_unix_ms",
            "restarts",
            "exit_code",
            "log_file",
        }
        assert (row["name"], row["service"], row["state"]) == ("te-0", "task_executor", "running")
        stopped = await client.ask(op="stop", name="te-0", grace_seconds=5)
        assert stopped["process"]["state"] == "stopped"
        assert (await client.ask(op="list"))["processes"] == []


async def test_a_leader_that_was_replaced_starts_and_stops_nothing(house: House) -> None:
    driver = LocalDriver(str(house.data.socket), stop_grace_seconds=1.0)
    kind = types.MEMBER_KIND_TASK_EXECUTOR
    await driver.start_pod(kind, "te-0", {}, term=4)
    await driver.start_pod(kind, "te-1", {}, term=5)
    with pytest.raises(Unavailable, match="term 4 is over: the cluster manager of term 5 leads"):
        await driver.start_pod(kind, "te-2", {}, term=4)
    with pytest.raises(Unavailable, match="term 4 is over"):
        await driver.stop_pod("te-0", term=4)
    assert [row.name for row in house.supervisor.rows()] == ["te-0", "te-1"]
    await driver.stop_pod("te-0", term=5)
    async with connected(house) as client:  # a person has no term
        assert (await client.ask(op="stop", name="te-1", grace_seconds=1))["ok"]
        assert not (await client.ask(op="stop", name="te-1", term=0))["ok"]
    assert house.supervisor.rows() == []


async def test_a_watch_sees_every_state_a_process_stays_in(house: House) -> None:
    async with connected(house) as watcher, connected(house) as client:
        assert (await watcher.ask(op="watch")) == {"ok": True, "processes": []}
        await client.ask(op="start", service="job_executor", name="je-0")
        while not (rows := (await watcher.receive())["processes"]) or not rows[0]["pid"]:
            pass
        await client.ask(op="stop", name="je-0")
        while (await watcher.receive())["processes"]:
            pass


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b'{"op": "start", "service": "sh", "name": "x"}',
        b'{"op": "start", "service": "gateway", "name": "x", "command": ["sh"]}',
        b'{"op": "stop", "name": "ghost"}',
    ],
)
async def test_a_refusal_is_one_sentence_and_the_connection_goes_on(
    house: House, line: bytes
) -> None:
    async with connected(house) as client:
        await client.send(line)
        refusal = await client.receive()
        assert refusal["ok"] is False
        assert len(refusal["error"].split()) > 3
        assert (await client.ask(op="list"))["ok"]
    assert house.supervisor.rows() == []


async def test_a_line_without_an_end_is_refused(house: House) -> None:
    async with connected(house) as client:
        await client.send(b"x" * (LINE_BYTES_MAX + 1))
        assert "bytes" in (await client.receive())["error"]
        assert await client.reader.read() == b""


async def test_describe_cluster_and_shutdown(house: House) -> None:
    async with connected(house) as client:
        assert (await client.ask(op="describe"))["supervisor_pid"] == 1
        assert (await client.ask(op="cluster"))["members"] == []
        assert not house.shutdown.is_set()
        assert await client.ask(op="shutdown") == {"ok": True}
    assert house.shutdown.is_set()


async def test_the_command_lines_client(house: House) -> None:
    def talk() -> str:
        with SupervisorClient(house.data) as client:
            assert client.ask("list") == {"processes": []}
            with pytest.raises(StackError, match="ghost"):
                client.ask("stop", name="ghost")
            return "done"

    assert await asyncio.to_thread(talk) == "done"


def test_without_a_stack_the_client_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NoStack, match="deepflow up"):
        SupervisorClient(DataDir(tmp_path))


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.socket.touch()

    async def cluster() -> dict[str, Any]:
        return {}

    face = Face(Supervisor(), lambda *_: None, dict, cluster, lambda: None)  # type: ignore[arg-type]
    socket = ControlSocket(data.socket, face)
    await socket.start()
    assert stat.S_ISSOCK(data.socket.stat().st_mode)
    await socket.close()
