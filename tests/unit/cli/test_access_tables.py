"""Keys, tenants and usage as a person sees them, in a terminal as narrow as it may be."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from deepflow.access.names import REQUESTS_MAX, TOKENS_MAX
from deepflow.access.wording import describe_key, describe_tenant, describe_usage
from deepflow.cli.access_tables import keys_table, tenants_table, usage_table
from deepflow.cli.common import EXIT_BAD_OPTION
from deepflow.cli.main import app
from deepflow.ids import new_id
from deepflow.v1 import access_pb2, store_pb2

MARKUP = "[/red][link=x]"


def shown(table: Table, width: int) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def usage_row(tokens: int, model: str = "org/a-model-with-a-long-name") -> dict[str, Any]:
    return describe_usage(
        store_pb2.KeyUsage(
            tenant="a-tenant-with-a-long-name",
            key_id=new_id("key"),
            model=model,
            requests=12_345,
            prompt_tokens=tokens,
            completion_tokens=tokens,
            cached_tokens=tokens,
        )
    )


@pytest.mark.parametrize("width", [72, 80, 200])
def test_no_terminal_cuts_what_was_used(width: int) -> None:
    text = shown(usage_table([usage_row(1), usage_row(987_654_321)]), width)
    assert text.count("987,654,321") == 3 and text.count("12,345") == 2
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_what_people_wrote_is_shown_as_they_wrote_it() -> None:
    key = access_pb2.ApiKey(id=new_id("key"), tenant="shop", label=MARKUP)
    assert MARKUP in shown(keys_table([describe_key(key)]), 100)
    tenant = access_pb2.Tenant(name="shop", allowed_models=[MARKUP])
    assert MARKUP in shown(tenants_table([describe_tenant(tenant)]), 100)
    assert MARKUP in shown(usage_table([usage_row(1, MARKUP)]), 200)


@pytest.mark.parametrize(
    ("option", "most"),
    [("--rpm", REQUESTS_MAX), ("--tpm", TOKENS_MAX), ("--concurrent", REQUESTS_MAX)],
)
def test_a_limit_beyond_its_record_is_said_before_anything_is_asked(option: str, most: int) -> None:
    result = CliRunner().invoke(app, ["keys", "create", f"{option}={10**26}"])
    assert result.exit_code == EXIT_BAD_OPTION
    assert f"{option} must be from 0 (no limit) to {most}" in result.stderr
