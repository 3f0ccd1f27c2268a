"""Triton's decorator and launches with types, of which triton has none."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, cast

import torch
import triton

# Of every launch. A product and the sum behind it round once: Triton has always done so, and will
# want to be told.
OPTIONS = {"enable_fp_fusion": True}

Function = TypeVar("Function", bound=Callable[..., object])


class Kernel(Protocol):
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """What launches one program for each place of the grid."""


def kernel(function: Callable[..., None]) -> Kernel:
    return cast(Kernel, triton.jit(function))


def kernel_part(function: Function) -> Function:
    """What kernels call."""
    return cast(Function, triton.jit(function))


def varying(*names: str) -> Callable[[Callable[..., None]], Kernel]:
    """A kernel for which Triton compiles nothing anew where one of these integers changes."""
    return lambda function: cast(Kernel, triton.jit(function, do_not_specialize=names))


def card_of(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Triton launches on the thread's current card, which may be another one."""
    return cast(
        AbstractContextManager[None],
        torch.cuda.device_of(tensor),  # type: ignore[no-untyped-call]
    )
