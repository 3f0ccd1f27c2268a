import socket
from collections.abc import Iterator

import pytest

from deepflow.local.errors import StackError
from deepflow.local.ports import keep_or_choose, require_free
from tests.servers import free_port


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_busy_port_is_named_with_the_way_out(busy_port: int) -> None:
    with pytest.raises(StackError, match=rf"port {busy_port} .*--port"):
        require_free("127.0.0.1", [free_port(), busy_port])


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(StackError, match="--host"):
        require_free("192.0.2.1", [free_port()])


def test_free_ports_pass() -> None:
    require_free("127.0.0.1", [free_port()])


def test_a_busy_port_is_replaced_and_a_free_one_kept(busy_port: int) -> None:
    mine = free_port()
    kept, replaced, chosen = keep_or_choose([mine, busy_port, 0])
    assert kept == mine
    assert len({kept, replaced, chosen, busy_port}) == 4
