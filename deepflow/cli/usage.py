"""`deepflow usage`: what keys have used."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepflow.cli.cluster_access import ClusterManagerOption
from deepflow.cli.common import DataDirOption, fail

if TYPE_CHECKING:
    from pathlib import Path


def usage(
    key: Annotated[str, typer.Option(metavar="ID", help="Of this key only.")] = "",
    tenant: Annotated[str, typer.Option(help="Of this tenant only.")] = "",
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help='One JSON object: "usage".')] = False,
) -> None:
    """Show requests and tokens (in, of these cached, out) by tenant, key and model.

    Since the records began; the gateways add to them every few seconds. The key
    "none" stands for requests made without one, "cluster" for the platform's own.

    \b
      deepflow usage --tenant shop
      deepflow usage --json | jq '.usage[] | {key_id, completion_tokens}'
    """
    import asyncio

    from deepflow.errors import DeepFlowError

    try:
        rows = asyncio.run(_usage(tenant, key, data_dir, cluster_manager))
    except DeepFlowError as error:
        fail(error.message)
    if as_json:
        print(json.dumps({"usage": rows}))
        return
    from rich.console import Console

    from deepflow.cli.access_tables import usage_table

    console = Console()
    if rows:
        console.print(usage_table(rows))
    else:
        console.print("nothing was used yet", highlight=False)


async def _usage(
    tenant: str, key: str, data_dir: "Path | None", address: str | None
) -> list[dict[str, Any]]:
    from deepflow.access.wording import describe_usage
    from deepflow.cli.record_access import records_of

    async with records_of(data_dir, address) as records:
        return [describe_usage(row) for row in await records.usage(tenant, key)]
