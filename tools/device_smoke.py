"""Five minutes on the first card: is what a device was written for what the card does?

    python -m tools.device_smoke --device cuda            on a machine with a CUDA card
    python -m tools.device_smoke --device npu             with an NPU, CANN and torch_npu
    python -m tools.device_smoke --device cuda --dry-run  the same checks on this CPU

Every operation, and a small model, run on the card and in fp32 on the CPU, on the same numbers.
Then come graphs, and questions that documentation leaves open. A table for people, and one line
of JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from services.task_executor.devices.base import Device
from tools.device_checks.opening import NAMES, OpenDevice, on_card, on_cpu, stand_in
from tools.device_checks.operations import OPERATIONS, Operation
from tools.device_checks.verdict import (
    BF16_ERROR_MAX,
    DIFFERS,
    INT8_ERROR_MAX,
    OK,
    Found,
    Verdict,
    compare,
    judge,
)
from tools.device_checks.whole_model import Runner, checkpoint

DECODES = 16
COSINE_MIN = 0.99


def verdicts(
    open_device: OpenDevice, folder: Path, open_for_model: OpenDevice | None = None
) -> Iterator[Verdict]:
    """What runs on every device; the reference is the CPU in fp32."""
    reference, device = on_cpu("float32"), open_device("bfloat16")
    for operation in OPERATIONS:
        subject = open_device("int8") if operation.is_quantised else device
        yield judge(operation.name, lambda it=operation, on=subject: _run(it, on, reference))  # type: ignore[misc]
    whole = open_for_model("bfloat16") if open_for_model else device
    yield judge("a whole model", lambda: _model(folder, whole, reference))


def card_verdicts(name: str, folder: Path) -> Iterator[Verdict]:
    """What only a card has an answer to."""
    device = on_card(name)("bfloat16")
    if name == "npu":
        from services.task_executor.devices.npu.device import NpuDevice
        from tools.device_checks.npu_probes import probes as npu_probes  # imports torch_npu

        assert isinstance(device, NpuDevice)
        found = npu_probes(folder, device)
    else:
        from tools.device_checks.cuda_probes import probes as cuda_probes

        found = cuda_probes(folder, device)
    for title, probe in found.items():
        yield judge(title, probe)


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.device_smoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=NAMES, required=True, help="whose card to try")
    parser.add_argument("--dry-run", action="store_true", help="on this CPU instead of a card")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    options = parser.parse_args(arguments)
    found: list[Verdict] = []
    ran_on = options.device
    try:
        with checkpoint() as folder:
            if options.dry_run:
                open_device, instead = stand_in(options.device)
                ran_on = f"{instead}, a dry run"
                sources = [verdicts(open_device, folder, on_cpu)]
            else:
                sources = [verdicts(on_card(options.device), folder)]
                sources.append(card_verdicts(options.device, folder))
            for verdict in (it for source in sources for it in source):
                found.append(verdict)
                if not options.json:
                    print(f"{verdict.outcome:9} {verdict.name:34} {verdict.detail}", flush=True)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(json.dumps({"device": ran_on, "checks": [it.as_json() for it in found]}))
    return int(any(it.is_bad for it in found))


if __name__ == "__main__":
    sys.exit(main())
