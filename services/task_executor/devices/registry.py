"""Every device by name; listing them imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.task_executor.devices.base import Device
from services.task_executor.devices.emulated.profiles import (
    ASCEND_910B,
    H200,
    ZERO,
    AcceleratorProfile,
)

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Names to entries; an unknown name is answered with the list of known ones."""

    def __init__(self, kind: str, entries: dict[str, Entry]) -> None:
        self._kind = kind
        self._entries = entries

    def get(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(f"unknown {self._kind} {name!r}; known: {', '.join(self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        return list(self._entries)


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """A device that torch drives; `open` imports it and sets its number of CPU threads."""

    open: Callable[[int | None], Device]


def _open_cpu(threads: int | None) -> Device:
    from services.task_executor.devices.cpu.device import CpuDevice  # imports torch

    return CpuDevice(threads)


DEVICES: Registry[TorchDevice | AcceleratorProfile] = Registry(
    "device",
    {
        "cpu": TorchDevice(_open_cpu),
        **{f"emulated:{profile.name}": profile for profile in (ZERO, ASCEND_910B, H200)},
    },
)
