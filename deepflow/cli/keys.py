"""`deepflow keys`: who may use the gateways."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepflow.cli.cluster_access import ClusterManagerOption
from deepflow.cli.common import EXIT_BAD_OPTION, EXIT_FAILED, DataDirOption, fail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from deepflow.access.records import AccessRecords

app = typer.Typer(
    help="Create, list and revoke API keys.\n\nWithout any key the gateways listen on loopback"
    " only and ask nobody; from the first key on every request needs one.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
LimitOption = Annotated[int | None, typer.Option(min=0, help="Of the tenant; 0 = no limit.")]


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
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="All that the tenant may use; '' = every model."),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="Share of the tenant beside others where work has to wait; 1 = usual."),
    ] = None,
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
    changes = _tenant_changes(rpm, tpm, concurrent, models, weight)

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


def _tenant_changes(
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    models: str | None,
    weight: float | None,
) -> dict[str, Any]:
    from deepflow.access.names import REQUESTS_MAX, TOKENS_MAX

    changes: dict[str, Any] = {
        "requests_per_minute": _limit("--rpm", rpm, REQUESTS_MAX),
        "tokens_per_minute": _limit("--tpm", tpm, TOKENS_MAX),
        "concurrent_requests": _limit("--concurrent", concurrent, REQUESTS_MAX),
    }
    if weight is not None:
        changes["weight"] = _weight(weight)
    if models is not None:
        changes["allowed_models"] = [name.strip() for name in models.split(",") if name.strip()]
    return {name: value for name, value in changes.items() if value is not None}


def _limit(option: str, given: int | None, most: int) -> int | None:
    """Before it is put into a record, whose fields are narrower than what can be typed."""
    if given is not None and given > most:
        fail(f"{option} must be from 0 (no limit) to {most}", EXIT_BAD_OPTION)
    return given


def _weight(given: float) -> float:
    from deepflow.access.names import check_weight
    from deepflow.errors import InvalidRequest

    try:
        return check_weight(given)
    except InvalidRequest as error:
        fail(f"--{error.message}", EXIT_BAD_OPTION)


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
