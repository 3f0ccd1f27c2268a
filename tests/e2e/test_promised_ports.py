"""The port that a person asked for is the gateway's, whatever else the stack chooses."""

from pathlib import Path

import msgspec

from deepflow.local.data_dir import Ports
from deepflow.local.local_stack import LocalStack
from deepflow.local.stack import StackOptions
from tests.servers import free_port


async def test_nobody_else_of_the_stack_takes_the_gateways_port(tmp_path: Path) -> None:
    """Not even who had it in the last run."""
    port = free_port()
    (tmp_path / "ports.json").write_bytes(msgspec.json.encode(Ports(redis=port)))
    options = StackOptions(tmp_path, port=port)
    stack = LocalStack(options)
    try:
        await stack.start()
        assert stack.urls == [options.url(port)]
    finally:
        await stack.stop()
