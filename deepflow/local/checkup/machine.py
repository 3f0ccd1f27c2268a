"""The machine: processor, memory and the kernel's settings that a CPU engine feels."""

import os
import resource
from pathlib import Path

import psutil

from deepflow.core.sizes import GIB, format_bytes
from deepflow.local.checkup.finding import Finding, fine, warn

MEMORY_MIN_BYTES = 4 * GIB
OPEN_FILES_MIN = 4096
# What makes a CPU fast at which weights, as Linux names it: best first.
USEFUL_FLAGS = {
    "amx_bf16": "bfloat16 in tiles",
    "amx_int8": "int8 in tiles",
    "avx512_bf16": "bfloat16",
    "avx512_vnni": "int8",
    "avx512f": "vectors of 512 bits",
    "avx_vnni": "int8 in 256 bits",
    "avx2": "vectors of 256 bits",
    "bf16": "bfloat16 (Arm)",
    "i8mm": "int8 (Arm)",
    "sve": "scalable vectors (Arm)",
    "asimd": "vectors of 128 bits (Arm)",
}
_WIDE = ("avx512f", "sve", "bf16")
_VECTORS = ("avx2", "avx512f", "asimd")


def examine_machine(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> list[Finding]:
    return [
        judge_flags(cpu_flags(proc)),
        judge_cores(os.cpu_count() or 1, usable_cores(), cpu_quota(sys)),
        judge_memory(psutil.virtual_memory().available, memory_limit(sys)),
        judge_huge_pages(huge_pages_setting(sys)),
        judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
    ]


# Facts


def cpu_flags(proc: Path) -> frozenset[str]:
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(sys: Path) -> float | None:
    """Cores that the control group allows; None where it sets no limit."""
    words = _read_words(sys / "fs/cgroup/cpu.max")
    if len(words) != 2 or not (words[0].isdecimal() and words[1].isdecimal()):
        return None
    return int(words[0]) / int(words[1])


def memory_limit(sys: Path) -> int | None:
    words = _read_words(sys / "fs/cgroup/memory.max")
    return int(words[0]) if words and words[0].isdecimal() else None


def huge_pages_setting(sys: Path) -> str:
    """always, madvise or never; empty where the kernel does not say."""
    chosen = _read_words(sys / "kernel/mm/transparent_hugepage/enabled")
    return next((word.strip("[]") for word in chosen if word.startswith("[")), "")


# Judgments


def judge_flags(flags: frozenset[str]) -> Finding:
    found = [name for name in USEFUL_FLAGS if name in flags]
    says = ", ".join(f"{name} ({USEFUL_FLAGS[name]})" for name in found) or "none that matter"
    if not flags:
        return warn("cpu", "the kernel does not list its features", "nothing, if it is not Linux")
    if not any(name in flags for name in _VECTORS):
        return warn("cpu", says, "expect few tokens a second: use a CPU with AVX2 or NEON")
    if not any(name in flags for name in _WIDE):
        return warn("cpu", says, "it works; a CPU with AVX-512 or AMX is several times faster")
    return fine("cpu", says)


def judge_cores(present: int, usable: int, quota: float | None) -> Finding:
    says = f"{usable} of {present} usable"
    if quota is not None:
        says += f", limited to the time of {quota:g}"
        if quota < usable:
            return warn(
                "cores",
                says,
                f"threads beyond the limit are stopped: set --cpus {max(1, int(quota))}"
                " or pin the container to whole cores",
            )
    if usable < 2:
        return warn("cores", says, "engine and services share one core: use two at least")
    return fine("cores", says)


def judge_memory(available: int, limit: int | None) -> Finding:
    says = f"{format_bytes(available)} available"
    if limit is not None:
        says += f", limited to {format_bytes(limit)} by the control group"
    if min(available, limit or available) < MEMORY_MIN_BYTES:
        return warn(
            "memory", says, "enough for the demo model; larger ones need twice their weights"
        )
    return fine("memory", says)


def judge_huge_pages(setting: str) -> Finding:
    about = "huge pages"
    if setting in ("always", "madvise"):
        return fine(about, setting)
    if not setting:
        return fine(about, "the kernel does not say")
    return warn(
        about,
        "never",
        "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def judge_open_files(soft: int, hard: int) -> Finding:
    about, says = "open files", f"{_count(soft)} (up to {_count(hard)})"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        return warn(about, says, f"many clients need more: ulimit -n {OPEN_FILES_MIN * 16}")
    return fine(about, says)


def _count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
