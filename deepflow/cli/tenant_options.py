"""What a tenant may use, as options of commands."""

from typing import Annotated, Any

import typer

from deepflow.cli.common import EXIT_BAD_OPTION, fail

LimitOption = Annotated[int | None, typer.Option(min=0, help="Of the tenant; 0 = no limit.")]
ModelsOption = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="All that the tenant may use; '' = every model."),
]
WeightOption = Annotated[
    float | None,
    typer.Option(help="Share of the tenant beside others where work has to wait; 1 = usual."),
]


def tenant_changes(
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    models: str | None,
    weight: float | None,
) -> dict[str, Any]:
    """Those that are given, as the records name them. Ends the command where one is wrong."""
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
