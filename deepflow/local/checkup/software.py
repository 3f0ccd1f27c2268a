"""What is installed: Python, packages, torch's build and the servers that a local stack embeds."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from deepflow import __version__
from deepflow.local import binaries
from deepflow.local.checkup.finding import Finding, fail, fine, warn

PROGRAM_SECONDS_MAX = 10.0
TORCH_SECONDS_MAX = 120.0  # a first import from a cold disk
PYTHON_MIN = (3, 11)
# Package, and what is missing without it.
PACKAGES = {
    "grpcio": "no service can speak to another",
    "nats-py": "no service can hear of another",
    "redis": "no kv_store",
    "tokenizers": "no job executor",
    "safetensors": "no model can be read",
    "llguidance": "no structured output and no forced tool calls",
}
INSTALL = "pip install 'deepflow[local]'"
# In a process of its own: a torch that is built for another CPU ends whoever imports it.
_ASK_TORCH = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "cpu": torch.backends.cpu.get_cpu_capability(),
    "mkldnn": torch.backends.mkldnn.is_available(),
    "cuda": torch.version.cuda or "",
    "gpus": torch.cuda.device_count(),
    "threads": torch.get_num_threads(),
}))
"""


def examine_software() -> list[Finding]:
    return [
        judge_python(sys.version_info[:2], platform.python_version()),
        fine("deepflow", __version__),
        *(judge_package(name, package_version(name)) for name in PACKAGES),
        judge_torch(*ask_torch()),
        _examine_server("nats-server"),
        _examine_server("redis-server"),
    ]


# Facts


def package_version(name: str) -> str:
    """Empty where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def ask_torch() -> tuple[dict[str, Any] | None, str]:
    """What torch says of itself, or why it says nothing."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        return None, f"importing it takes more than {TORCH_SECONDS_MAX:.0f} s"
    if answer.returncode == 0:
        return json.loads(answer.stdout.splitlines()[-1]), ""
    lines = answer.stderr.strip().splitlines()
    return None, lines[-1] if lines else f"importing it ended with {answer.returncode}"


def program_version(path: str) -> str:
    """The first line of its --version; empty where it does not run."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=PROGRAM_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = answer.stdout.strip().splitlines()
    return lines[0] if answer.returncode == 0 and lines else ""


def _examine_server(name: str) -> Finding:
    find = {"nats-server": binaries.nats_server, "redis-server": binaries.redis_server}[name]
    try:
        path = str(find())
    except binaries.MissingBinary as error:
        says, _, do = str(error).partition(": ")
        return fail(name, says, do)
    return judge_server(name, path, program_version(path))


# Judgments


def judge_python(version: tuple[int, ...], shown: str) -> Finding:
    if version < PYTHON_MIN:
        return fail("python", shown, f"install Python {'.'.join(map(str, PYTHON_MIN))} or newer")
    return fine("python", shown)


def judge_package(name: str, version: str) -> Finding:
    if not version:
        return fail(name, f"not installed: {PACKAGES[name]}", INSTALL)
    return fine(name, version)


def judge_torch(facts: dict[str, Any] | None, fault: str) -> Finding:
    if facts is None:
        return fail("torch", fault, "install a torch for this CPU: make install TORCH_INDEX=URL")
    build = f"CUDA {facts['cuda']}, {facts['gpus']} GPUs" if facts["cuda"] else "CPU build"
    says = f"{facts['version']} ({build}, {facts['cpu']}, {facts['threads']} threads)"
    if not facts["mkldnn"]:
        return warn("torch", says, "built without oneDNN: matrix products on the CPU are slow")
    return fine("torch", says)


def judge_server(name: str, path: str, version: str) -> Finding:
    if not version:
        return fail(name, f"{path} does not run", f"reinstall it: {INSTALL}")
    return fine(name, f"{version} ({path})")
