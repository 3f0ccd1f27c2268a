"""Zeroed memory on pages of 2 MiB, where the system has them to give.

KV is read all over the place: on small pages every block costs walks through the page tables.
"""

import mmap

import torch

from services.task_executor.devices.base import ALIGNMENT


def huge_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Its address is a multiple of 2 MiB; all of it is there when this returns."""
    length = torch.Size(shape).numel() * dtype.itemsize
    memory = mmap.mmap(-1, length + ALIGNMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)
    offset = -buffer.data_ptr() % ALIGNMENT
    return buffer[offset : offset + length].view(dtype).view(shape).zero_()
