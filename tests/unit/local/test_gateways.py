"""Which port a gateway gets, and for how long."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import InvalidRequest
from deepflow.local.data_dir import DataDir, Ports, Secrets
from deepflow.local.gateways import Gateways, choose_port, gateway_name
from deepflow.local.local_stack import LocalStack
from deepflow.local.process import ProcessState
from deepflow.local.stack import Stack, StackOptions
from tests.servers import free_port

PORTS = st.integers(1, 65535)


@given(wanted=st.integers(1, 70000), taken=st.sets(PORTS), busy=st.sets(PORTS), seed=PORTS)
def test_nobody_gets_a_port_of_another(
    wanted: int, taken: set[int], busy: set[int], seed: int
) -> None:
    others = iter([it for it in range(seed, seed + 70000) if it not in busy])

    def keep(port: int) -> int:
        """As this host would: whatever is free, in an order of its own."""
        return port if port and port not in busy else next(others)

    port = choose_port(wanted, taken, keep)
    assert port not in taken and port not in busy
    if wanted <= 65535 and wanted not in taken | busy:
        assert port == wanted


class FakeSupervisor:
    """Names and states are all that is asked of it."""

    def __init__(self) -> None:
        self.states: dict[str, ProcessState] = {}

    def all(self) -> list[Any]:
        named = self.states.items()
        return [SimpleNamespace(spec=SimpleNamespace(name=k), state=v) for k, v in named]


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def gateways(tmp_path: Path, port: int) -> tuple[Gateways, FakeSupervisor]:
    options, supervisor = StackOptions(port=port), FakeSupervisor()
    stack = Stack(options, DataDir(tmp_path), Secrets("a", "b", "c"), Ports(), {})
    return Gateways(stack, cast(Any, supervisor)), supervisor


def port_of(gateways: Gateways, name: str) -> int:
    return int(gateways.spec(name).environment["DEEPFLOW_GATEWAY_PORT"])


def test_a_gateway_keeps_its_port_and_gives_it_back(tmp_path: Path) -> None:
    first = free_port()
    ours, supervisor = gateways(tmp_path, first)
    assert port_of(ours, "gateway-0") == first
    supervisor.states["gateway-0"] = ProcessState.RUNNING
    with socket.socket() as listening:  # as the gateway itself does by now
        listening.bind(("127.0.0.1", first))
        assert port_of(ours, "gateway-0") == first
    supervisor.states["gateway-0"] = ProcessState.STOPPING
    assert port_of(ours, "gateway-0") == first and ours.urls == {}
    del supervisor.states["gateway-0"]
    assert port_of(ours, "gateway-0") == first


def test_a_busy_port_is_left_alone(tmp_path: Path, held_port: int) -> None:
    ours, supervisor = gateways(tmp_path, held_port - 1)
    supervisor.states["gateway-0"] = ProcessState.RUNNING
    assert port_of(ours, "gateway-1") not in (held_port, held_port - 1)


def test_nobody_else_chooses_where_a_gateway_listens(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no settings"):
        LocalStack(StackOptions(tmp_path))._launch("gateway", "gateway-1", {"host": "0.0.0.0"})


def test_the_first_gateways_come_first(tmp_path: Path) -> None:
    ours, supervisor = gateways(tmp_path, free_port())
    names = [gateway_name(i) for i in (10, 2, 0)]
    for name in names:
        ours.spec(name)
        supervisor.states[name] = ProcessState.RUNNING
    assert list(ours.urls) == names[::-1]
    assert len(set(ours.urls.values())) == 3
