"""Keys, tenants and usage as tables for people."""

import datetime
from typing import Any

from rich.table import Table


def keys_table(keys: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("id", no_wrap=True)
    for header in ("tenant", "admin", "label", "created", "revoked"):
        table.add_column(header)
    for key in keys:
        table.add_row(
            key["id"],
            key["tenant"],
            "yes" if key["is_admin"] else "",
            key["label"],
            _moment(key["created_unix_ms"]),
            _moment(key["revoked_unix_ms"]) if key["revoked_unix_ms"] else "",
        )
    return table


def tenants_table(tenants: list[dict[str, Any]]) -> Table:
    table = Table("tenant", "requests/min", "tokens/min", "at one time", "models", box=None)
    for tenant in tenants:
        table.add_row(
            tenant["name"],
            _limit(tenant["requests_per_minute"]),
            _limit(tenant["tokens_per_minute"]),
            _limit(tenant["concurrent_requests"]),
            ", ".join(tenant["allowed_models"] or ["all"]),
        )
    return table


def usage_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("tenant", box=None)
    table.add_column("key", no_wrap=True)
    table.add_column("model")
    numbers = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    for header in ("requests", "in", "cached", "out"):
        table.add_column(header, justify="right")
    for row in rows:
        names = (row["tenant"], row["key_id"], row["model"])
        table.add_row(*names, *(f"{row[number]:,}" for number in numbers))
    return table


def _limit(value: int | None) -> str:
    return "no limit" if value is None else f"{value:,}"


def _moment(unix_ms: int) -> str:
    return datetime.datetime.fromtimestamp(unix_ms / 1000).strftime("%Y-%m-%d %H:%M")
