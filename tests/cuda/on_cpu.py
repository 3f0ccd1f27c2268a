"""The cuda device over CPU tensors: Triton interprets its kernels, torch computes the rest."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from services.task_executor.devices.cpu.memory import memory_available
from services.task_executor.devices.cuda.triton_device import TritonDevice

PROCESSORS = 4


class TritonOnCpu(TritonDevice):
    def __init__(self, dtype: torch.dtype = torch.float32, *, is_quantised: bool = False) -> None:
        super().__init__(
            torch.device("cpu"), dtype, is_quantised=is_quantised, processors=PROCESSORS
        )

    def memory_available(self) -> int:
        return memory_available()


def multiply_bf16() -> None:
    """Teach the interpreter to: it keeps bf16 as bits, and its product takes these for integers."""
    builder = interpreter.InterpreterBuilder
    plain = builder.create_dot

    def exact(side: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if side.dtype.scalar != tl.bfloat16:
            return side
        bits = side.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(
        self: interpreter.InterpreterBuilder,
        one: interpreter.TensorHandle,
        other: interpreter.TensorHandle,
        *rest: object,
    ) -> interpreter.TensorHandle:
        return plain(self, exact(one), exact(other), *rest)

    builder.create_dot = create_dot
