"""The device under test, or why it is not here."""

from functools import cache

from services.task_executor.devices.base import Device
from services.task_executor.devices.registry import DEVICES, TorchDevice

DEVICE = "cuda"


def opened(dtype: str) -> Device:
    """Raises ValueError, which names what is missing."""
    entry = DEVICES.get(DEVICE)
    assert isinstance(entry, TorchDevice)
    return entry.open(None, dtype)


@cache
def why_not() -> str:
    """Empty where the device is here."""
    try:
        opened("float32")
    except ValueError as error:
        return str(error)
    return ""
