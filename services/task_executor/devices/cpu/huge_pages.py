"""Memory on pages of 2 MiB, where the system has them to give.

KV is read all over the place, and weights are read whole in every step: on small pages both cost
walks through the page tables.
"""

import mmap

import torch

from services.task_executor.devices.base import ALIGNMENT


def huge_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Its address is a multiple of 2 MiB; all of it is there when this returns."""
    length = torch.Size(shape).numel() * dtype.itemsize
    buffer = _map(length + ALIGNMENT)
    offset = -buffer.data_ptr() % ALIGNMENT
    return buffer[offset : offset + length].view(dtype).view(shape).zero_()


def huge_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Takes no more memory than it holds: what does not fill a large page lies on small ones."""
    return _map(torch.Size(shape).numel() * dtype.itemsize).view(dtype).view(shape)


def _map(length: int) -> torch.Tensor:
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
