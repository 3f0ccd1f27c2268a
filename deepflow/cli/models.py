"""`deepflow models`: what is deployed, and what came of it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, cluster_of
from deepflow.cli.common import DataDirOption, fail

if TYPE_CHECKING:
    from pathlib import Path

# A standby leads by then, where one is there.
AWAY_SECONDS_MAX = 8.0


def models(
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help='One JSON object: "models", a list.')
    ] = False,
) -> None:
    """Show every deployment: state, replicas, dtype, context, memory, source.

    A deployment is ready, loading, waiting for a task executor, or failed; below
    the table it says how far it is, or why it failed.

    \b
      deepflow models
      deepflow models --json | jq '.models[] | {name, state, max_tokens}'
    """
    import asyncio

    from deepflow.errors import DeepFlowError, Unavailable

    try:
        rows = asyncio.run(_models(data_dir, cluster_manager))
    except Unavailable as error:
        fail(f"the cluster manager does not answer: {error.message}")
    except DeepFlowError as error:
        fail(error.message)
    if as_json:
        print(json.dumps({"models": rows}))
        return
    from rich.console import Console

    from deepflow.cli.models_table import models_table

    console = Console()
    if not rows:
        console.print("no deployments; begin with 'deepflow deploy MODEL'", highlight=False)
        return
    console.print(models_table(rows))
    for row in rows:
        if row["detail"]:
            console.print(f"{row['name']}: {row['detail']}", highlight=False, markup=False)


async def _models(data_dir: "Path | None", address: str | None) -> list[dict[str, Any]]:
    from deepflow.deployments import describe_deployments
    from deepflow.local.follow import latest_view

    async with cluster_of(data_dir, address) as cluster:
        return describe_deployments(await latest_view(cluster, AWAY_SECONDS_MAX))
