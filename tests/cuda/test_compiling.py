"""The kernels compile for cards, with the very arguments that they are launched with.

No card is needed: Triton brings NVIDIA's assembler. What it refuses here, such as products of two
types or a tile that does not fit, its interpreter lets pass.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from services.task_executor.devices.base import AttentionInputs, KvShape, LayerKv
from services.task_executor.devices.cuda import paged_attention, row_operations
from services.task_executor.devices.cuda.attention import attention_for
from services.task_executor.devices.cuda.indexes import upload

# The least that cards of capability 8.0 and later give a program.
SHARED_BYTES_MAX = 99 * 1024
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int8: "*i8",
}
ATTENTION = ("write_kv", "attend_chunks", "attend_decodes", "merge_splits")
ROWS = ("norm_rows", "rotate_heads", "gate_rows", "quantise_rows", "scale_rows")
OPTIONS = ("num_warps", "enable_fp_fusion")


@dataclass
class Compiling:
    """Stands where a kernel stood: a launch compiles it."""

    kernel: JITFunction
    capability: int
    compiled: dict[str, CompiledKernel]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return self._launch

    def _launch(self, *args: object, **kwargs: object) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = inspect.signature(self.kernel.fn).bind(*args, **kwargs).arguments
        constants = {it.name: given[it.name] for it in self.kernel.params if it.is_constexpr}
        types = {name: _type(value) for name, value in given.items() if name not in constants}
        source = ASTSource(
            self.kernel,
            types | dict.fromkeys(constants, "constexpr"),
            {(list(given).index(name),): value for name, value in constants.items()},
            {},
        )
        target = GPUTarget("cuda", self.capability, 32)
        name = self.kernel.fn.__name__
        self.compiled[name] = triton.compile(source, target=target, options=options)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@pytest.mark.parametrize(
    ("capability", "dtype", "heads", "kv_heads", "head_dim"),
    [
        (80, torch.bfloat16, 8, 1, 80),
        (90, torch.bfloat16, 32, 8, 128),
        (80, torch.float32, 4, 4, 128),
        (90, torch.bfloat16, 2, 2, 256),
    ],
)
def test_attention_compiles_and_fits(
    monkeypatch: pytest.MonkeyPatch,
    capability: int,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> None:
    with compiling(monkeypatch, paged_attention, ATTENTION, capability):
        attend_once(dtype, heads, kv_heads, head_dim, window=300 if capability == 90 else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_operations_compile_and_fit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    heads, hidden = torch.zeros(3, 8, 80, dtype=dtype), torch.zeros(3, 4096, dtype=dtype)
    with compiling(monkeypatch, row_operations, ROWS, 90):
        row_operations.rms_norm(heads, None, 1e-5)
        row_operations.add_rms_norm(hidden, hidden, hidden[0], 1e-5)
        row_operations.rotate(heads, torch.zeros(3, 40), torch.zeros(3, 40))
        row_operations.swiglu(hidden)
        whole, scales = row_operations.quantise(hidden, 17, 4096)
        row_operations.scale(whole.int(), scales, torch.zeros(4000), hidden[0], dtype)


@contextmanager
def compiling(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, names: Sequence[str], capability: int
) -> Iterator[None]:
    """All that is launched inside is compiled instead."""
    compiled: dict[str, CompiledKernel] = {}
    for name in names:
        kernel = getattr(module, name)
        assert isinstance(kernel, JITFunction)  # not interpreted
        monkeypatch.setattr(module, name, Compiling(kernel, capability, compiled))
    yield
    assert compiled.keys() == set(names)
    for kernel in compiled.values():
        assert kernel.metadata.shared <= SHARED_BYTES_MAX
        assert kernel.asm["cubin"]


def attend_once(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, window: int | None
) -> None:
    """A chunk, and a decode whose context is split."""
    shape = KvShape(1, 64, 16, kv_heads, head_dim)
    kv = LayerKv(*(torch.zeros(shape.layer_shape, dtype=dtype) for _ in "kv"))
    queries = torch.zeros(4, heads, head_dim, dtype=dtype)
    keys = torch.zeros(4, kv_heads, head_dim, dtype=dtype)
    tables = torch.zeros(2, 40, dtype=torch.int32)
    inputs = AttentionInputs(16, [3, 1], [9, 600], tables, torch.zeros(4, dtype=torch.int64))
    attention = attention_for(queries, kv, processors=132)
    indexes = upload(inputs, attention.tokens_per_item, torch.from_numpy)
    attention.write(keys, keys, kv, indexes)
    attention.attend(queries, kv, indexes, window)
