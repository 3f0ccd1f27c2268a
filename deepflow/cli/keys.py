"""`deepflow keys`: who may use the gateways."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepflow.cli.cluster_access import ClusterManagerOption
from deepflow.cli.common import EXIT_BAD_OPTION, EXIT_FAILED, DataDirOption, fail
from deepflow.cli.tenant_options import LimitOption, ModelsOption, WeightOption, tenant_changes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from deepflow.access.records import AccessRecords

app = typer.Typer(
    help="Create, list and revoke API keys; limit tenants.\n\nWithout any key gateways listen on"
    " loopback only and ask nobody; from the first key on every request needs one.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def create(
    tenant: Annotated[
        str,
        typer.Option(help="Whom it belongs to: limits and cached prefixes are the tenant's."),
    ] = "default",
    admin: Annotated[
        bool, typer.Option("--admin", help="May also change keys and read metrics.")
    ] = False,
    label: Annotated[str, typer.Option(help="What you will know it by.")] = "",
    rpm: LimitOption = None,
    tpm: LimitOption = None,
    concurrent: LimitOption = None,
    models: ModelsOption = None,
    weight: WeightOption = None,
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once: only its hash is kept.

    --rpm and --tpm are requests and tokens per minute, --concurrent requests at
    one time; a tenant of --weight 2 gets twice the tokens of one of weight 1
    while both wait. They belong to the tenant, hence to all of its keys; what
    is not given stays as it is.

    \b
      deepflow keys create --admin --label me
      deepflow keys create --tenant shop --rpm 60 --tpm 20000 --models demo
    """
    changes = tenant_changes(rpm, tpm, concurrent, models, weight)

    async def make(records: "AccessRecords") -> dict[str, Any]:
        from deepflow.access.wording import describe_key

        if changes:
            await records.change_tenant(tenant, changes)
        secret, key = await records.create_key(tenant, is_admin=admin, label=label)
        return describe_key(key) | {"key": secret}

    made = _with_records(make, data_dir, cluster_manager)
    if as_json:
        print(json.dumps(made))
        return
    print(made["key"])
    kind = "admin key" if admin else "key"
    typer.echo(f"{kind} {made['id']} of {tenant}; it is not shown again", err=True)


@app.command()
def limits(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose limits to change.")],
    rpm: LimitOption = None,
    tpm: LimitOption = None,
    concurrent: LimitOption = None,
    models: ModelsOption = None,
    weight: WeightOption = None,
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what a tenant may use, for all of its keys; what is not given stays as it is.

    The gateways hold to it within a moment, also for requests of keys that
    were made before.

    \b
      deepflow keys limits shop --rpm 120 --weight 2
      deepflow keys limits shop --tpm 0 --models ''

    [bold]Exit codes[/bold]

    \b
      0    it holds
      1    nobody could be asked
      2    an option is wrong, or none says what to change
    """
    changes = tenant_changes(rpm, tpm, concurrent, models, weight)
    if not changes:
        fail(
            "say what to change: --rpm, --tpm, --concurrent, --models or --weight",
            EXIT_BAD_OPTION,
        )

    async def change(records: "AccessRecords") -> dict[str, Any]:
        from deepflow.access.wording import describe_tenant

        return describe_tenant(await records.change_tenant(tenant, changes))

    changed = _with_records(change, data_dir, cluster_manager)
    if as_json:
        print(json.dumps(changed))
        return
    from rich.console import Console

    from deepflow.cli.access_tables import tenants_table

    Console().print(tenants_table([changed]))


@app.command("list")
def list_keys(
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every key and every tenant's limits; never the keys themselves."""

    async def read(records: "AccessRecords") -> dict[str, Any]:
        from deepflow.access.wording import describe_key, describe_tenant

        known = await records.read()
        keys = sorted(known.keys, key=lambda key: key.created_unix_ms)
        return {
            "keys": [describe_key(key) for key in keys],
            "tenants": [describe_tenant(tenant) for tenant in known.tenants],
        }

    known = _with_records(read, data_dir, cluster_manager)
    if as_json:
        print(json.dumps(known))
        return
    from rich.console import Console

    from deepflow.cli.access_tables import keys_table, tenants_table

    console = Console()
    if not known["keys"]:
        console.print("no keys: whoever reaches the loopback may ask", highlight=False)
    else:
        console.print(keys_table(known["keys"]))
    if known["tenants"]:
        console.print(tenants_table(known["tenants"]))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As 'deepflow keys list' shows it.")],
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
) -> None:
    """Make a key useless, on every gateway, for good.

    [bold]Exit codes[/bold]

    \b
      0    it opens nothing any more
      1    nobody could be asked
      2    there is no such key
    """

    async def revoked(records: "AccessRecords") -> dict[str, Any]:
        from deepflow.access.wording import describe_key

        return describe_key(await records.revoke_key(key_id))

    _with_records(revoked, data_dir, cluster_manager)
    print(f"revoked {key_id}")


def _with_records(
    work: "Callable[[AccessRecords], Awaitable[dict[str, Any]]]",
    data_dir: "Path | None",
    address: str | None,
) -> dict[str, Any]:
    import asyncio

    from deepflow.cli.record_access import records_of
    from deepflow.errors import DeepFlowError, InvalidRequest, NotFound

    async def run() -> dict[str, Any]:
        async with records_of(data_dir, address) as records:
            return await work(records)

    try:
        return asyncio.run(run())
    except (InvalidRequest, NotFound) as error:
        fail(error.message, EXIT_BAD_OPTION)
    except DeepFlowError as error:
        fail(error.message, EXIT_FAILED)
