"""What `deepflow doctor` finds: judgments by facts, and one real check-up."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepflow.core.sizes import GIB
from deepflow.local.checkup import machine, software, stack
from deepflow.local.checkup.finding import Level
from deepflow.local.data_dir import DataDir


def doctor(folder: Path, port: int) -> tuple[int, dict[str, dict[str, str]]]:
    command = [sys.executable, "-m", "deepflow.cli.main", "doctor", "--json"]
    command += ["--data-dir", str(folder), "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    return done.returncode, {it["about"]: it for it in document["findings"]}


def test_a_whole_check_up_of_a_machine_that_runs_the_tests(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        code, found = doctor(tmp_path / "data", port)
    assert code == 0
    assert {"python", "torch", "llguidance", "nats-server", "cpu", "stack"} <= found.keys()
    assert f"pid {os.getpid()}" in found[f"port {port}"]["says"]
    assert all(it["do"] for it in found.values() if it["level"] != "ok"), "says what to do"
    assert not (tmp_path / "data").exists(), "nothing is changed"


def test_a_folder_that_cannot_be_used_fails(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    fault = stack.why_not_writable(blocked / "data")
    finding = stack.judge_folder(blocked / "data", fault, 100 * GIB)
    assert finding.level is Level.FAIL and "--data-dir" in finding.do


@pytest.mark.parametrize(
    ("free", "level"), [(0, Level.FAIL), (GIB, Level.WARN), (100 * GIB, Level.OK)]
)
def test_a_full_disk_fails_and_a_small_one_warns(tmp_path: Path, free: int, level: Level) -> None:
    assert stack.judge_folder(tmp_path, "", free).level is level


@pytest.mark.parametrize(
    "flags, level",
    [
        ({"avx2", "avx512f", "amx_bf16"}, Level.OK),
        ({"asimd", "sve"}, Level.OK),
        ({"avx2", "sse4_2"}, Level.WARN),
        ({"sse4_2"}, Level.WARN),
        (set(), Level.WARN),
    ],
)
def test_what_a_processor_can_do(flags: set[str], level: Level) -> None:
    assert machine.judge_flags(frozenset(flags)).level is level


def test_limits_of_a_container_are_seen(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    assert machine.judge_cores(8, 8, 1.5).level is Level.WARN
    assert machine.judge_cores(8, 8, None).level is Level.OK
    finding = machine.judge_memory(64 * GIB, machine.memory_limit(tmp_path))
    assert finding.level is Level.WARN and "2.00 GiB" in finding.says
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path) is None and machine.memory_limit(tmp_path) is None


def test_flags_and_pages_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n")
    assert machine.cpu_flags(tmp_path) == {"fpu", "avx2", "amx_bf16"}
    setting = tmp_path / "kernel" / "mm" / "transparent_hugepage"
    setting.mkdir(parents=True)
    (setting / "enabled").write_text("always madvise [never]\n")
    assert machine.judge_huge_pages(machine.huge_pages_setting(tmp_path)).level is Level.WARN


def test_few_open_files_are_a_warning() -> None:
    assert machine.judge_open_files(1024, 4096).level is Level.WARN
    assert machine.judge_open_files(65536, 65536).level is Level.OK


TORCH = {"version": "2", "cpu": "AVX2", "mkldnn": True, "cuda": "", "gpus": 0, "threads": 2}


def test_software_that_is_missing_or_old_fails() -> None:
    assert software.judge_python((3, 10), "3.10").level is Level.FAIL
    assert software.judge_package("grpcio", "").level is Level.FAIL
    assert software.judge_torch(None, "illegal instruction").level is Level.FAIL
    assert software.judge_torch(TORCH, "").level is Level.OK
    assert software.judge_torch(TORCH | {"mkldnn": False}, "").level is Level.WARN
    assert software.judge_server("nats-server", "/bin/false", "").level is Level.FAIL
    assert software.program_version("/bin/false") == ""


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "running", "restarts": 0, "pid": 1} | more


def test_the_state_of_a_stack() -> None:
    assert stack.judge_running(None, "").level is Level.OK
    assert stack.judge_running([row("te-0")], "").level is Level.OK
    again = stack.judge_running([row("te-0", restarts=2)], "")
    assert again.level is Level.WARN and "te-0" in again.says
    failed = stack.judge_running([row("nats", state="failed")], "")
    assert failed.level is Level.FAIL and "nats is failed" in failed.says
    assert stack.judge_running(None, "it does not answer").level is Level.FAIL


def test_a_port_of_ours_is_fine_and_one_of_others_is_not(tmp_path: Path) -> None:
    assert stack.judge_port(8000, 7, "python", {7}).level is Level.OK
    assert stack.judge_port(8000, 7, "python", set()).level is Level.WARN
    assert stack.judge_port(8000, None, "", set()).level is Level.OK
    assert stack.running_processes(DataDir(tmp_path)) == (None, "")
