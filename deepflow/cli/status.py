"""`deepflow status`: every process and every deployment of a running stack."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepflow.cli.common import DataDirOption, fail

if TYPE_CHECKING:
    from deepflow.local.client import SupervisorClient

    Row = dict[str, Any]


def status(
    data_dir: DataDirOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='One JSON object: "processes", "deployments", "services" (how many of a kind'
            " are wanted), addresses.",
        ),
    ] = False,
) -> None:
    """Show every process: pid, state and since when, restarts, load.

    The state is what the process said of itself to the cluster manager; for
    NATS, Redis and whatever is not a member (yet) it is the supervisor's.

    \b
      deepflow status
      deepflow status --json | jq '.processes[] | {name, state, load}'
    """
    from deepflow.local.client import SupervisorClient
    from deepflow.local.data_dir import DataDir, default_root
    from deepflow.local.errors import StackError

    try:
        with SupervisorClient(DataDir(data_dir or default_root())) as client:
            answer = collect(client)
    except StackError as error:
        fail(str(error))
    if as_json:
        print(json.dumps(answer))
        return
    from deepflow.cli.status_table import show

    show(answer)


def collect(client: "SupervisorClient") -> dict[str, Any]:
    from deepflow.local.errors import StackError

    answer = client.ask("describe")
    rows = client.ask("list")["processes"]
    try:
        cluster = client.ask("cluster") | {"cluster_error": None}
    except StackError as error:
        nothing: dict[str, Any] = {"members": [], "deployments": [], "services": []}
        cluster = nothing | {"cluster_error": str(error)}
    members = {member["id"]: member for member in cluster.pop("members")}
    processes = [_joined(row, members.get(row["name"])) for row in rows]
    return {**answer, **cluster, "processes": [_supervisor(answer), *_with_engines(processes)]}


def _joined(row: "Row", member: "Row | None") -> "Row":
    """What the supervisor knows of a process and what the process says of itself."""
    joined = {**row, "process_state": row["state"], "detail": "", "deployment": "", "load": None}
    # A record of an earlier life of this process says nothing about this one.
    if member is None or member["pid"] != row["pid"] or row["state"] != "running":
        return joined
    same = ("state", "detail", "deployment", "load", "address", "health_address")
    joined |= {key: member[key] for key in same}
    return joined | {"since_unix_ms": member["state_since_unix_ms"] or row["since_unix_ms"]}


def _supervisor(description: "Row") -> "Row":
    pid = description["supervisor_pid"]
    log_file = f"{description['log_dir']}/supervisor.log"
    return _plain("supervisor", "supervisor", pid, log_file)


def _with_engines(rows: list["Row"]) -> list["Row"]:
    """Each task executor's engine below it: a process that its shell owns, not the supervisor."""
    import psutil

    found: list[Row] = []
    for row in rows:
        found.append(row)
        if row["service"] != "task_executor" or not row["pid"]:
            continue
        try:
            children = psutil.Process(row["pid"]).children()
        except psutil.Error:
            continue
        for child in children:
            found.append(_plain(f"{row['name']}/engine", "engine", child.pid, row["log_file"]))
    return found


def _plain(name: str, service: str, pid: int, log_file: str) -> "Row":
    """A process that is known by its pid alone."""
    import psutil

    try:
        since = int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        since = 0
    return {
        "name": name,
        "service": service,
        "pid": pid,
        "state": "running",
        "process_state": "running",
        "since_unix_ms": since,
        "restarts": 0,
        "exit_code": None,
        "log_file": log_file,
        "detail": "",
        "deployment": "",
        "load": None,
    }
