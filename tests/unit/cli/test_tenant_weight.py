"""A tenant's weight, as it is given and shown."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deepflow.access.names import check_tenant
from deepflow.access.wording import describe_tenant
from deepflow.cli.access_tables import tenants_table
from deepflow.cli.common import EXIT_BAD_OPTION
from deepflow.cli.main import app
from deepflow.errors import InvalidRequest
from deepflow.v1 import access_pb2

WRONG = ["0", "-1", "100.5", "nan", "inf"]


@pytest.mark.parametrize("verb", [["create"], ["limits", "shop"]])
@pytest.mark.parametrize("weight", WRONG)
def test_a_wrong_weight_is_said_before_anything_is_asked(weight: str, verb: list[str]) -> None:
    result = CliRunner().invoke(app, ["keys", *verb, f"--weight={weight}"])
    assert result.exit_code == EXIT_BAD_OPTION
    assert "--weight must be from 0.01 to 100" in result.stderr


def test_limits_ask_what_to_change() -> None:
    result = CliRunner().invoke(app, ["keys", "limits", "shop"])
    assert result.exit_code == EXIT_BAD_OPTION
    assert "say what to change: --rpm, --tpm" in result.stderr


@pytest.mark.parametrize("weight", WRONG[1:])
def test_no_record_holds_a_wrong_weight(weight: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_tenant(access_pb2.Tenant(name="shop", weight=float(weight)))
    assert raised.value.param == "weight"


@pytest.mark.parametrize(("stored", "shown"), [(0.0, 1.0), (2.5, 2.5)])
def test_a_weight_is_shown_and_none_is_one(stored: float, shown: float) -> None:
    tenant = describe_tenant(check_tenant(access_pb2.Tenant(name="shop", weight=stored)))
    assert tenant["weight"] == shown
    console = Console(width=100)
    with console.capture() as captured:
        console.print(tenants_table([tenant]))
    assert f"{shown:g}" in captured.get().splitlines()[-1].split()
