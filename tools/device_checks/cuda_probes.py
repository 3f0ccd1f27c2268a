"""Of a CUDA card: graphs, who waits for the card, and how fast its memory is."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deepflow.bench.copy_rate import measure_copy_rate
from services.task_executor.devices.base import Device
from tools.device_checks.replays import replays_in_a_row
from tools.device_checks.verdict import OBSERVED, OK, Found
from tools.device_checks.whole_model import Runner


def waits_of_a_step(folder: Path, device: Device) -> Found:
    """torch raises where it sees the host wait; a step reads its answer by an event."""
    runner = Runner(folder, device)
    runner.prefill()
    runner.decode()  # compiles
    with _no_waiting():
        runner.decode()
    return OK, "an eager decode step, from its tokens to its logits on the host"


def copy_rate(device: Device) -> Found:
    name = torch.cuda.get_device_name(device.torch_device)
    return OBSERVED, f"{name}: {measure_copy_rate(device) / 1e9:.0f} GB/s, read and written"


@contextmanager
def _no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not see every way to wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def probes(folder: Path, device: Device) -> dict[str, Callable[[], Found]]:
    return {
        "graph replays beside eager steps": lambda: replays_in_a_row(folder, device),
        "nothing waits in a step": lambda: waits_of_a_step(folder, device),
        "copies inside the device": lambda: copy_rate(device),
    }
