"""The stack's own places: its folder, its ports, the fetched models, and what runs."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil

from deepflow.core.fetched_models import default_models_folder
from deepflow.core.sizes import GIB, MIB, format_bytes
from deepflow.local.checkup.finding import Finding, fail, fine, warn
from deepflow.local.client import NoStack, SupervisorClient
from deepflow.local.data_dir import DataDir
from deepflow.local.errors import StackError
from deepflow.local.ports import require_free

DEFAULT_PORT = 8000
DISK_MIN_BYTES = 5 * GIB
DISK_FULL_BYTES = MIB  # Redis ends where it cannot write a record
GOOD_STATES = frozenset(("ready", "running", "blank"))


def examine_stack(data: DataDir, port: int = DEFAULT_PORT) -> list[Finding]:
    rows, fault = running_processes(data)
    pids = {row["pid"] for row in rows or () if row["pid"]}
    models = default_models_folder()
    return [
        judge_folder(data.root, why_not_writable(data.root), free_bytes(data.root)),
        judge_running(rows, fault),
        judge_port(port, *port_holder(port), pids),
        judge_models(models, *folder_size(models)),
    ]


# Facts


def why_not_writable(folder: Path) -> str:
    """Empty where a file can be made in it, or the folder itself can."""
    there = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there}: {error.strerror}"


def nearest(folder: Path) -> Path:
    """Itself, or the first of its parents that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(nearest(folder)).free


def running_processes(data: DataDir) -> tuple[list[dict[str, Any]] | None, str]:
    """What the supervisor of the folder has; None where there is none, or why it says nothing."""
    try:
        with SupervisorClient(data) as client:
            rows: list[dict[str, Any]] = client.ask("list")["processes"]
            return rows, ""
    except NoStack:
        return None, ""
    except StackError as error:
        return None, str(error)


def port_holder(port: int) -> tuple[int | None, str]:
    """(pid, name) of who listens there; (None, "") for nobody, pid 0 where it may not be seen."""
    try:
        require_free("127.0.0.1", [port])
        return None, ""
    except StackError as error:
        refusal = str(error)
    try:
        return _listener(port)
    except psutil.AccessDenied:  # some systems show connections to root alone
        return 0, refusal


def _listener(port: int) -> tuple[int | None, str]:
    listening = [
        it
        for it in psutil.net_connections("tcp")
        if it.status == psutil.CONN_LISTEN and it.laddr and it.laddr.port == port
    ]
    if not listening:
        return 0, "a process that cannot be seen"
    pid = next((it.pid for it in listening if it.pid), 0)
    try:
        return pid, psutil.Process(pid).name() if pid else "a process of another user"
    except psutil.Error:
        return 0, "a process that has just ended"


def folder_size(folder: Path) -> tuple[int, int]:
    """(files, bytes) below it."""
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return len(files), sum(_size(path) for path in files)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


# Judgments


def judge_folder(folder: Path, fault: str, free: int) -> Finding:
    about = "data folder"
    if fault:
        return fail(about, fault, "choose another with --data-dir or DEEPFLOW_DATA_DIR")
    says = f"{folder}, {format_bytes(free)} free"
    if free < DISK_FULL_BYTES:
        return fail(about, says, "make room: no record and no log line can be written")
    if free < DISK_MIN_BYTES:
        return warn(about, says, "make room: records and logs stop where the disk is full")
    return fine(about, says)


def judge_running(rows: list[dict[str, Any]] | None, fault: str) -> Finding:
    about = "stack"
    if fault:
        return fail(about, fault, "see the supervisor's log: deepflow logs supervisor")
    if rows is None:
        return fine(about, "none runs in this folder; 'deepflow up' starts one")
    bad = [f"{row['name']} is {row['state']}" for row in rows if row["state"] not in GOOD_STATES]
    if bad:
        return fail(about, "; ".join(bad), "see 'deepflow status' and 'deepflow logs NAME'")
    again = [row["name"] for row in rows if row["restarts"]]
    says = f"{len(rows)} processes run"
    if again:
        return warn(about, f"{says}; restarted: {', '.join(again)}", "see 'deepflow logs NAME'")
    return fine(about, says)


def judge_port(port: int, pid: int | None, holder: str, ours: set[int]) -> Finding:
    about = f"port {port}"
    if pid is None:
        return fine(about, "free")
    if pid in ours:
        return fine(about, f"this stack's gateway (pid {pid})")
    who = f"held by {holder}" + (f" (pid {pid})" if pid else "")
    return warn(about, who, "choose another: deepflow up --port 8080")


def judge_models(folder: Path, files: int, size: int) -> Finding:
    says = f"{folder}: {files} files, {format_bytes(size)}" if files else f"{folder}: empty"
    return fine("fetched models", says)
