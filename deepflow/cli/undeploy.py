"""`deepflow undeploy`: serve a model no more."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, cluster_of
from deepflow.cli.common import DataDirOption, fail

if TYPE_CHECKING:
    from pathlib import Path


def undeploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'deepflow models' shows it.")],
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
) -> None:
    """Serve a model no more: its task executors give it up and end.

    What was fetched stays on the disk.

    \b
      deepflow undeploy llama
    """
    import asyncio

    from deepflow.errors import DeepFlowError

    try:
        asyncio.run(_undeploy(name, data_dir, cluster_manager))
    except DeepFlowError as error:
        fail(f"cannot undeploy {name}: {error.message}")
    print(f"undeployed {name}")


async def _undeploy(name: str, data_dir: "Path | None", address: str | None) -> None:
    async with cluster_of(data_dir, address) as cluster:
        await cluster.undeploy(name)
