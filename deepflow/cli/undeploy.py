"""`deepflow undeploy`: serve a model no more."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, cluster_of, why
from deepflow.cli.common import EXIT_BAD_OPTION, DataDirOption, fail

if TYPE_CHECKING:
    from pathlib import Path


def undeploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'deepflow models' shows it.")],
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
) -> None:
    """Serve a model no more: its task executors give it up and end.

    Running requests end first; new ones get a 404 at once. What was fetched
    stays on the disk.

    \b
      deepflow undeploy llama

    [bold]Exit codes[/bold]

    \b
      0    it is served no more
      1    nobody could be asked
      2    there is no such model
    """
    import asyncio

    from deepflow.errors import DeepFlowError, InvalidRequest, NotFound

    try:
        asyncio.run(_undeploy(name, data_dir, cluster_manager))
    except DeepFlowError as error:
        is_wrong = isinstance(error, InvalidRequest | NotFound)
        fail(f"cannot undeploy {name}: {why(error)}", EXIT_BAD_OPTION if is_wrong else 1)
    print(f"undeployed {name}")


async def _undeploy(name: str, data_dir: "Path | None", address: str | None) -> None:
    async with cluster_of(data_dir, address) as cluster:
        await cluster.undeploy(name)
