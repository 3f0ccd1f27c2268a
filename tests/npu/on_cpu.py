"""Runs code of device 'npu' with real numbers: every operation on CPU tensors over the same bytes.

The stubbed runtime keeps device memory in host memory but computes nothing. Under this mode torch's
own operations run in their CPU kernels, and those of torch_npu in the references; views, memory,
streams and copies stay torch_npu's. It also notes every operation for which torch_npu has no
kernel: on a card, that one would quietly copy its tensors to the CPU and back.
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.npu.references import REFERENCES

# Any of these answers for an operation on an NPU without a copy to the CPU.
KERNEL_KEYS = (
    "PrivateUse1",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)
# They make or mark memory; the values come later.
_MEMORY = ("aten::empty", "aten::empty_strided", "aten::record_stream")


def has_kernel(func: Any) -> bool:
    overload = func._schema.overload_name
    name = func._schema.name + (f".{overload}" if overload else "")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return any(has(name, key) for key in KERNEL_KEYS)


def over_same_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the memory of an NPU one."""
    storage = tensor.untyped_storage()
    size = storage.nbytes() // tensor.element_size() * tensor.element_size()
    shape = (tensor.size(), tensor.stride())
    if not size:
        return torch.empty_strided(*shape, dtype=tensor.dtype)
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(*shape, tensor.storage_offset())


def on_npu(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="npu")
    over_same_bytes(copy).copy_(tensor)
    return copy


def is_npu(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "npu"


@dataclass(frozen=True, slots=True, repr=False)  # fake tensors cannot be printed
class Call:
    """One operation with everything that it got; `func` is torch's overload."""

    func: Any
    args: Any
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.func._schema.name)

    @property
    def is_ours(self) -> bool:
        """Does any of it lie on the NPU, or is it to go there?"""
        device = self.kwargs.get("device")
        goes_there = device is not None and torch.device(device).type == "npu"
        return goes_there or any(map(is_npu, tree_leaves((self.args, self.kwargs))))

    @property
    def is_view(self) -> bool:
        infos = [it.alias_info for it in self.func._schema.returns]
        return any(info is not None and not info.is_write for info in infos)

    @property
    def writes_only(self) -> bool:
        """Nothing new comes out of it."""
        infos = [it.alias_info for it in self.func._schema.returns]
        return all(info is not None and info.is_write for info in infos)


def compute(call: Call) -> Any:
    """Run it on the CPU, and put what is new where it belongs."""
    originals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def to_cpu(leaf: Any) -> Any:
        if not is_npu(leaf):
            return leaf
        copy = over_same_bytes(leaf)
        originals[id(copy)] = (copy, leaf)  # the copy too, so that its id stays taken
        return copy

    args, kwargs = tree_map(to_cpu, (call.args, call.kwargs))
    stays = bool(originals)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == "npu"
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    if call.name.startswith(("npu::", "atb::")):
        result = _reference(call)(**_bound(call, args, kwargs))
    else:
        result = call.func(*args, **kwargs)

    def back(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in originals:
            return originals[id(leaf)][1]
        return on_npu(leaf) if stays else leaf

    return tree_map(back, result)


def _reference(call: Call) -> Callable[..., Any]:
    assert call.name in REFERENCES, f"no reference for {call.name}"
    return REFERENCES[call.name]


def _bound(call: Call, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument by its name in the schema that torch_npu registers."""
    bound = {}
    for index, argument in enumerate(call.func._schema.arguments):
        given = kwargs.get(argument.name, argument.default_value)
        bound[argument.name] = args[index] if index < len(args) else given
    return bound


class NpuOnCpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Of one thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.without_kernel: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, dict(kwargs or {}))
        if not call.is_ours:
            return func(*args, **call.kwargs)
        self.calls[call.name] += 1
        if not has_kernel(func):
            self.without_kernel.add(str(func))
        if call.is_view and func._can_decompose():
            with self:  # `to` and its like: a view, or a copy
                return func.decompose(*args, **call.kwargs)
        if call.is_view or call.name in _MEMORY:
            return func(*args, **call.kwargs)
        return self.run(call)

    def run(self, call: Call) -> Any:
        return compute(call)
