"""How fast a device copies inside its own memory, which is what bounds its decode steps.

Run as `python -m deepflow.bench.copy_rate DEVICE`, it prints bytes a second, read and written.
"""

import argparse
import time

from deepflow.core.sizes import GIB
from services.task_executor.devices.base import Device
from services.task_executor.devices.registry import DEVICES, TorchDevice

# Far above every cache, and long enough that starting a copy is nothing beside it.
COPY_BYTES_MAX = GIB
COPIES = 8  # one after the other, timed together
REPEATS = 5


def measure_copy_rate(device: Device, size_max: int = COPY_BYTES_MAX) -> float:
    """The best of several."""
    import torch  # late: it takes seconds

    size = min(size_max, device.memory_available() // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    stream = device.current_stream()

    def seconds() -> float:
        stream.record().wait()
        began = time.perf_counter()
        for _ in range(COPIES):
            target.copy_(source)
        stream.record().wait()
        return time.perf_counter() - began

    seconds()  # touches the memory, and starts what has to be started once
    return 2 * size * COPIES / min(seconds() for _ in range(REPEATS))


def open_device(name: str) -> Device:
    """Raises ValueError where there is no such device here."""
    entry = DEVICES.get(name)
    if not isinstance(entry, TorchDevice):
        raise ValueError(f"the device {name} has no memory of its own")
    return entry.open(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deepflow.bench.copy_rate", description=__doc__)
    parser.add_argument("device")
    print(measure_copy_rate(open_device(parser.parse_args().device)))
