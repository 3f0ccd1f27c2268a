"""`deepflow down`: stop the stack that runs in a folder."""

from typing import Annotated

import typer

from deepflow.cli.common import DataDirOption, fail

WAIT_SECONDS = 150.0
POLL_SECONDS = 0.05


def down(
    data_dir: DataDirOption = None,
    wait: Annotated[bool, typer.Option(help="Wait until every process is gone.")] = True,
) -> None:
    """Stop the stack: running requests may end, then every process does.

    Does nothing, successfully, where no stack runs.
    """
    import time

    from deepflow.local.client import NoStack, SupervisorClient
    from deepflow.local.data_dir import DataDir, default_root
    from deepflow.local.errors import StackError

    data = DataDir(data_dir or default_root())
    try:
        with SupervisorClient(data) as client:
            client.ask("shutdown")
    except NoStack:
        print(f"no stack runs in {data.root}")
        return
    except StackError as error:
        fail(str(error))
    deadline = time.monotonic() + WAIT_SECONDS
    while wait and data.is_held:
        if time.monotonic() > deadline:
            fail(f"the stack did not stop within {WAIT_SECONDS:.0f} s; its logs: {data.logs}")
        time.sleep(POLL_SECONDS)
    print("stopped" if wait else "stopping")
