"""Decode attention by a kernel of our own, which reads paged KV where it lies."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from services.task_executor.devices.base import LayerKv
from services.task_executor.devices.cpu.native.background import BackgroundBuild

SOURCE = Path(__file__).with_suffix(".c")
# As in the C file.
HEADS_MAX = 512
BLOCK_MAX = 256


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("sequences", "block_size", "kv_heads", "group")),
        *((name, ctypes.c_int64) for name in ("head_dim", "table_width", "query_stride")),
        *((name, ctypes.c_void_p) for name in ("tables", "tokens", "starts", "lengths")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


class DecodeAttention:
    """The compiled kernel."""

    def __init__(self, library: Path) -> None:
        """Raises OSError where it cannot be loaded."""
        self._run = ctypes.CDLL(str(library)).decode_attention
        self._run.argtypes = [ctypes.POINTER(_Step), *[ctypes.c_void_p] * 4]
        self._run.restype = None

    def fits(self, queries: torch.Tensor, kv: LayerKv) -> bool:
        return (
            queries.dtype is torch.float32
            and kv.keys.dtype is torch.float32
            and kv.keys.is_contiguous()
            and kv.values.is_contiguous()
            and queries.shape[1] <= HEADS_MAX
            and kv.keys.shape[1] <= BLOCK_MAX
        )

    def attend(
        self, rows: "DecodeRows", queries: torch.Tensor, kv: LayerKv, out: torch.Tensor
    ) -> None:
        """Fills `out` [tokens, heads, head_dim] where the rows' tokens are; it is contiguous."""
        _, heads, head_dim = queries.shape
        if queries.stride(1) != head_dim or queries.stride(2) != 1:
            queries = queries.contiguous()
        step = rows.step
        step.block_size, step.kv_heads = kv.keys.shape[1], kv.keys.shape[2]
        step.group, step.head_dim = heads // step.kv_heads, head_dim
        step.query_stride, step.scale = queries.stride(0), head_dim**-0.5
        step.threads = torch.get_num_threads()
        self._run(
            ctypes.byref(step),
            queries.data_ptr(),
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            out.data_ptr(),
        )


class DecodeRows:
    """The sequences of a step that run one token each; every layer of one window shares them."""

    def __init__(
        self,
        tables: torch.Tensor,  # int32 [sequences, blocks]
        tokens: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
    ) -> None:
        columns = [torch.tensor(it, dtype=torch.int64) for it in (tokens, starts, lengths)]
        self._held = [tables.contiguous(), *columns]  # the kernel only has their addresses
        self.step = _Step(sequences=len(tokens), table_width=tables.shape[1])
        for name, tensor in zip(("tables", "tokens", "starts", "lengths"), self._held, strict=True):
            setattr(self.step, name, tensor.data_ptr())


@cache
def begin_build() -> BackgroundBuild[DecodeAttention]:
    """One for the process."""
    return BackgroundBuild(DecodeAttention, SOURCE)
