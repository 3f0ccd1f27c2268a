"""What bounds the engine on each kind of device, and how near it came: its roofline.

On CPUs matrix products bound a whole round. Accelerators are bound in decode steps by reading
their memory. Emulated devices compute nothing, so that nothing bounds them.
"""

import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from deepflow.bench.processes import child
from deepflow.bench.roofline import GemmWork
from deepflow.bench.sse_client import BenchError


@dataclass(frozen=True, slots=True)
class Counted:
    """What our engine did in the counted rounds."""

    folder: Path  # of the model
    requests: int
    prompt: int  # tokens of each
    output: int
    output_tok_s: float
    devices: int
    sums: dict[str, float]  # of its trace


@dataclass(frozen=True, slots=True)
class Roofline:
    kind: ClassVar[str]
    roofline_fraction: float

    def as_dict(self) -> dict[str, Any]:
        return {"roofline": self.kind, **asdict(self)}


class Ceiling(ABC):
    """The best rate of a device, measured before anybody else computes there."""

    @abstractmethod
    def command(self) -> list[str]:
        """A module and its arguments: prints the rate, in a process of its own."""

    @abstractmethod
    def told(self, rate: float) -> str: ...

    @abstractmethod
    def hold(self, rate: float, counted: Counted) -> Roofline: ...


@dataclass(frozen=True, slots=True)
class GemmRoofline(Roofline):
    kind: ClassVar[str] = "gemm"
    gemm_gflops: float
    roofline_tok_s: float

    def __str__(self) -> str:
        return (
            f"{self.roofline_fraction:.2f} of the roofline of its matrix products"
            f" ({self.roofline_tok_s:.0f} tokens/s)"
        )


@dataclass(frozen=True, slots=True)
class GemmCeiling(Ceiling):
    def command(self) -> list[str]:
        return ["deepflow.bench.roofline"]

    def told(self, rate: float) -> str:
        return f"{rate:.0f} GFLOP/s in fp32"

    def hold(self, rate: float, counted: Counted) -> GemmRoofline:
        work = GemmWork.of_folder(counted.folder)
        gflop = work.gflop(counted.requests, counted.prompt, counted.output)
        most = counted.requests * counted.output * rate / gflop
        return GemmRoofline(counted.output_tok_s / most, rate, most)


@dataclass(frozen=True, slots=True)
class MemoryRoofline(Roofline):
    """Means over the decode steps of the counted rounds."""

    kind: ClassVar[str] = "memory"
    copy_bytes_s: float  # of one device
    decode_step_bytes: float  # that have to be read
    decode_step_s: float

    def __str__(self) -> str:
        return (
            f"decode steps at {self.roofline_fraction:.2f} of the roofline of its memory"
            f" ({self.decode_step_bytes / 1e9:.2f} GB in {self.decode_step_s * 1e3:.2f} ms,"
            f" {self.copy_bytes_s / 1e9:.0f} GB/s)"
        )


@dataclass(frozen=True, slots=True)
class MemoryCeiling(Ceiling):
    device: str

    def command(self) -> list[str]:
        return ["deepflow.bench.copy_rate", self.device]

    def told(self, rate: float) -> str:
        return f"{rate / 1e9:.0f} GB/s copied, read and written"

    def hold(self, rate: float, counted: Counted) -> MemoryRoofline:
        """Several devices read their shares beside each other."""
        steps = counted.sums["decode_steps"]
        if not steps:
            raise BenchError("no step was all decodes: take a longer --output")
        step_bytes = counted.sums["decode_bytes"] / steps
        seconds = counted.sums["decode_seconds"] / steps
        fraction = step_bytes / seconds / (rate * counted.devices)
        return MemoryRoofline(fraction, rate, step_bytes, seconds)


def ceiling_of(device: str) -> Ceiling | None:
    if device == "cpu":
        return GemmCeiling()
    return None if device.startswith("emulated:") else MemoryCeiling(device)


def measure(ceiling: Ceiling) -> float:
    command, pipe = [sys.executable, "-m", *ceiling.command()], subprocess.PIPE
    with child(command, stdout=pipe, stderr=pipe, text=True) as process:
        output, words = map(str, process.communicate())
    if process.returncode:
        (*_, last) = ["it ended without a word", *words.strip().splitlines()]
        raise BenchError(f"the device could not be measured: {last}")
    return float(output.splitlines()[-1])
