"""Five minutes on the first card: is what the NPU path was written for what the card does?

    python -m tools.npu_smoke                 on a machine with an NPU, CANN and torch_npu
    python -m tools.npu_smoke --dry-run       the same checks, bf16 against fp32 on this CPU

Every operation, and a small model, run on the card and in fp32 on the CPU, on the same numbers.
Then come questions that documentation leaves open. A table for people, and one line of JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from services.task_executor.devices.base import Device
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.registry import DEVICES, TorchDevice
from tools.npu_checks.operations import OPERATIONS, Operation
from tools.npu_checks.verdict import (
    BF16_ERROR_MAX,
    DIFFERS,
    INT8_ERROR_MAX,
    OK,
    Found,
    Verdict,
    compare,
    judge,
)
from tools.npu_checks.whole_model import Runner, checkpoint

OpenDevice = Callable[[str], Device]  # by dtype
DECODES = 16
COSINE_MIN = 0.99


def open_npu(dtype: str) -> Device:
    entry = DEVICES.get("npu")
    assert isinstance(entry, TorchDevice)
    return entry.open(None, dtype)


def open_cpu(dtype: str) -> Device:
    return CpuDevice(None, dtype)


def verdicts(open_device: OpenDevice, folder: Path) -> Iterator[Verdict]:
    """What runs on every device; the reference is the CPU in fp32."""
    reference, device = open_cpu("float32"), open_device("bfloat16")
    for operation in OPERATIONS:
        subject = open_device("int8") if operation.is_quantised else device
        yield judge(operation.name, lambda it=operation, on=subject: _run(it, on, reference))  # type: ignore[misc]
    yield judge("a whole model", lambda: _model(folder, device, reference))


def card_verdicts(folder: Path) -> Iterator[Verdict]:
    from services.task_executor.devices.npu.device import NpuDevice
    from tools.npu_checks.probes import probes  # imports torch_npu

    device = open_npu("bfloat16")
    assert isinstance(device, NpuDevice)
    for name, probe in probes(folder, device).items():
        yield judge(name, probe)


def _run(operation: Operation, device: Device, reference: Device) -> Found:
    error_max = INT8_ERROR_MAX if operation.is_quantised else BF16_ERROR_MAX
    return compare(operation.run(device), operation.run(reference), error_max)


def _model(folder: Path, device: Device, reference: Device) -> Found:
    """Random weights leave near ties, so tokens may part ways; logits of the prompt may not."""
    got, wanted = Runner(folder, device), Runner(folder, reference)
    cosine = float(torch.cosine_similarity(got.prefill(), wanted.prefill(), dim=-1).min())
    for _ in range(DECODES):
        got.decode()
        wanted.decode()
    pairs = [
        (one, other)
        for ours, theirs in zip(got.batch.tokens, wanted.batch.tokens, strict=True)
        for one, other in zip(ours[-DECODES:], theirs[-DECODES:], strict=True)
    ]
    same = sum(one == other for one, other in pairs)
    detail = f"cosine of logits {cosine:.4f}, {same} of {len(pairs)} greedy tokens alike"
    return (OK if cosine >= COSINE_MIN else DIFFERS), detail


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.npu_smoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="bf16 on this CPU instead of a card")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    options = parser.parse_args()
    found: list[Verdict] = []
    try:
        with checkpoint() as folder:
            sources = [verdicts(open_cpu if options.dry_run else open_npu, folder)]
            if not options.dry_run:
                sources.append(card_verdicts(folder))
            for verdict in (it for source in sources for it in source):
                found.append(verdict)
                if not options.json:
                    print(f"{verdict.outcome:9} {verdict.name:34} {verdict.detail}", flush=True)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    device = "cpu, a dry run" if options.dry_run else "npu"
    print(json.dumps({"device": device, "checks": [it.as_json() for it in found]}))
    return int(any(it.is_bad for it in found))


if __name__ == "__main__":
    sys.exit(main())
