"""Keys, tenants and usage as tables for people."""

import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table


def keys_table(keys: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    for header in ("tenant", "admin", "label"):
        table.add_column(header, overflow="fold")
    for header in ("created", "revoked"):
        table.add_column(header, min_width=len("2026-01-01"))
    for key in keys:
        table.add_row(
            key["id"],
            key["tenant"],
            "yes" if key["is_admin"] else "",
            escape(key["label"]),
            _moment(key["created_unix_ms"]),
            _moment(key["revoked_unix_ms"]) if key["revoked_unix_ms"] else "",
        )
    return table


def tenants_table(tenants: list[dict[str, Any]]) -> Table:
    headers = ("tenant", "requests/min", "tokens/min", "at one time", "weight", "models")
    table = Table(*headers, box=None, padding=(0, 1, 0, 0))
    for tenant in tenants:
        table.add_row(
            tenant["name"],
            _limit(tenant["requests_per_minute"]),
            _limit(tenant["tokens_per_minute"]),
            _limit(tenant["concurrent_requests"]),
            f"{tenant['weight']:g}",
            escape(", ".join(tenant["allowed_models"] or ["all"])),
        )
    return table


def usage_table(rows: list[dict[str, Any]]) -> Table:
    """Where it is too narrow for all of it, names are folded: a number is shown whole."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for header in ("tenant", "key", "model"):
        table.add_column(header, overflow="fold")
    numbers = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    for header, number in zip(("requests", "in", "cached", "out"), numbers, strict=True):
        widest = max((len(f"{row[number]:,}") for row in rows), default=0)
        width = max(len(header), widest)
        table.add_column(header, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        names = (escape(row[name]) for name in ("tenant", "key_id", "model"))
        table.add_row(*names, *(f"{row[number]:,}" for number in numbers))
    return table


def _limit(value: int | None) -> str:
    return "no limit" if value is None else f"{value:,}"


def _moment(unix_ms: int) -> str:
    return datetime.datetime.fromtimestamp(unix_ms / 1000).strftime("%Y-%m-%d %H:%M")
