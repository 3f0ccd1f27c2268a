"""Deployments as rows: the whole of them, and the short form that `status` shows."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from deepflow.core.sizes import format_bytes

_COLOURS = {"ready": "green", "failed": "red"}


def models_table(rows: list[dict[str, Any]]) -> Table:
    table = _table(("model", "state", "replicas", "what it is"))
    for row in rows:
        table.add_row(*_beginning(row), f"{_description(row)}\n{escape(row['source'])}")
    return table


def deployments_table(rows: list[dict[str, Any]]) -> Table:
    table = _table(("deployment", "state", "replicas", "device", "what it is"))
    for row in rows:
        table.add_row(*_beginning(row), row["device"], _description(row))
    return table


def _beginning(row: dict[str, Any]) -> tuple[str, str, str]:
    return escape(row["name"]), _state(row), f"{row['ready']}/{row['replicas']}"


def _description(row: dict[str, Any]) -> str:
    """One column of lines instead of many columns: a terminal may be narrow."""
    words = (memory_words(row), kv_words(row), context_words(row), rank_words(row))
    size = ", ".join(filter(None, words))
    return f"{row['architecture']}, {parameter_words(row['parameters'])}\n{size}"


def parameter_words(count: int) -> str:
    if count >= 10**9:
        return f"{count / 1e9:.2f} B parameters"
    return f"{count / 1e6:.1f} M parameters"


def memory_words(row: dict[str, Any]) -> str:
    """For example: 1.50 GiB weights in bfloat16."""
    if not row["weight_bytes"]:
        return str(row["dtype"])
    return f"{format_bytes(row['weight_bytes'])} weights in {row['dtype']}"


def kv_words(row: dict[str, Any]) -> str:
    return f"{format_bytes(row['kv_bytes'])} KV" if row["kv_bytes"] else ""


def rank_words(row: dict[str, Any]) -> str:
    """For example: tp 2 x pp 2. Nothing where one rank holds the model."""
    ways = (("tp", row.get("tensor_parallel", 1)), ("pp", row.get("pipeline_parallel", 1)))
    return " x ".join(f"{name} {count}" for name, count in ways if count > 1)


def context_words(row: dict[str, Any]) -> str:
    """Shows where the context was cut."""
    held, whole = row["max_tokens"], row["context_length"]
    if not held or held == whole:
        return f"{whole} tokens"
    return f"{held} of {whole} tokens"


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_short = column in ("state", "replicas", "device")
        table.add_column(column, no_wrap=is_short, overflow="fold")
    return table


def _state(row: dict[str, Any]) -> str:
    colour = _COLOURS.get(row["state"], "yellow")
    return f"[{colour}]{row['state']}[/{colour}]"
