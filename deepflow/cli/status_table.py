"""Draws what `deepflow status` collected."""

import time
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from deepflow.cli.models_table import deployments_table
from deepflow.core.sizes import format_bytes

_COLOURS = {
    "ready": "green",
    "running": "green",
    "blank": "cyan",
    "restarting": "red",
    "failed": "red",
    "stopped": "red",
}


def show(answer: dict[str, Any]) -> None:
    console = Console()
    console.print(_processes(answer["processes"]))
    if answer["cluster_error"]:
        console.print(f"[yellow]the cluster manager does not answer:[/] {answer['cluster_error']}")
    elif answer["deployments"]:
        console.print(deployments_table(answer["deployments"]))
        for row in answer["deployments"]:
            if row["detail"]:
                console.print(f"{row['name']}: {row['detail']}", highlight=False, markup=False)
    else:
        console.print("no deployments")
    for label, key in (("gateways", "gateways"), ("data", "data_dir"), ("logs", "log_dir")):
        value = answer[key]
        text = ", ".join(value) if isinstance(value, list) else value
        console.print(f"{label:<9} {text}", soft_wrap=True, highlight=False)


def _processes(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "pid", "state", "for", "restarts", "load"):
        justify: JustifyMethod = "right" if column in ("pid", "restarts") else "left"
        table.add_column(column, justify=justify, no_wrap=column in ("name", "for"))
    for row in rows:
        table.add_row(
            row["name"],
            str(row["pid"] or ""),
            _state(row),
            age(time.time() - row["since_unix_ms"] / 1000),
            str(row["restarts"]),
            load_words(row["load"]),
        )
    return table


def _state(row: dict[str, Any]) -> str:
    words = " ".join(word for word in (row["state"], row["deployment"], row["detail"]) if word)
    colour = _COLOURS.get(row["state"], "yellow")
    return f"[{colour}]{escape(words)}[/{colour}]"


def age(seconds: float) -> str:
    """The two units that matter: "42 s", "3 min 10 s", "2 h 5 min"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def load_words(load: dict[str, Any] | None) -> str:
    if load is None:
        return ""
    words = f"{load['running']} running, {load['waiting']} waiting"
    if not load["running"] and not load["waiting"]:
        words = "idle"
    if load["total_blocks"]:
        used = load["total_blocks"] - load["free_blocks"]
        words += f", {used}/{load['total_blocks']} blocks"
    # The device's are those blocks.
    words += "".join(f", {_tier_words(tier)}" for tier in load["kv_tiers"][1:])
    if load["tokens_per_second"]:
        words += f", {load['tokens_per_second']:.0f} tokens/s"
    return words


def _tier_words(tier: dict[str, Any]) -> str:
    held = tier["used_bytes"] + tier["kept_bytes"]
    return f"{tier['name']} {format_bytes(held)} of {format_bytes(tier['bytes'])}"
