"""Every call of torch_npu in our code binds to what torch_npu registers, and runs its shape kernel.

Shape kernels see wrong arguments, dtypes and ranks. Under them a tensor has no values, so code
that waits for one fails, as does code whose shapes hang on values.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_npu
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    KvShape,
    LayerKv,
)
from services.task_executor.devices.npu.attention import NpuAttentionStep, PagedIndexes
from services.task_executor.devices.npu.device import NpuDevice
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.weights.safetensors_folder import SafetensorsFolder
from tests.npu.checkpoints import ODD, write
from tests.npu.on_cpu import has_kernel

ROOT = Path(__file__).parents[2]
FOLDERS = ("services", "tools")
OPERATION = re.compile(r"torch_npu\.(?:atb\.)?(_?npu_\w+)")
# What is no operation: streams, graphs and the like.
PLAIN = re.compile(r"torch_npu\.npu\.([\w.]+)")


@dataclass(frozen=True)
class Found:
    name: str  # as it stands in the code
    positional: int
    keywords: frozenset[str]
    where: str


def calls() -> Iterator[Found]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    name = ast.unparse(node.func)
                    if name.startswith("torch_npu."):
                        keywords = frozenset(it.arg for it in node.keywords if it.arg)
                        where = f"{file.relative_to(ROOT)}:{node.lineno}"
                        yield Found(name, len(node.args), keywords, where)


def schemas() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith(("npu::", "atb::")):
            found.setdefault(schema.name.split("::")[1], []).append(schema)
    return found


def binds(schema: Any, call: Found) -> bool:
    by_place = [it.name for it in schema.arguments if not it.kwarg_only]
    if call.positional > len(by_place):
        return False
    given = set(by_place[: call.positional])
    if given & call.keywords or not call.keywords <= {it.name for it in schema.arguments}:
        return False
    needed = {it.name for it in schema.arguments if not it.has_default_value()}
    return needed <= given | call.keywords


def test_every_operation_binds_to_its_schema() -> None:
    known = schemas()
    found = [it for it in calls() if OPERATION.fullmatch(it.name)]
    names = {it.name for it in found}
    assert {"torch_npu.npu_fused_infer_attention_score", "torch_npu.npu_quant_matmul"} <= names
    bad = []
    for call in found:
        name = call.name.rpartition(".")[2]
        if not any(binds(schema, call) for schema in known.get(name, [])):
            bad.append(f"{call.where}: {call.name}")
    assert not bad


def test_everything_else_of_torch_npu_exists_and_takes_its_arguments() -> None:
    bad = []
    for call in calls():
        match = PLAIN.fullmatch(call.name)
        if match is None:
            continue
        target: Any = torch_npu.npu
        try:
            for part in match[1].split("."):
                target = getattr(target, part)
            signature = inspect.signature(target)
        except AttributeError:
            bad.append(f"{call.where}: there is no {call.name}")
            continue
        except ValueError:  # written in C, without a signature
            continue
        try:
            signature.bind(*[None] * call.positional, **dict.fromkeys(call.keywords))
        except TypeError as error:
            bad.append(f"{call.where}: {call.name}: {error}")
    assert not bad


class NoFallback(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.without_kernel: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith(("aten::", "npu::")) and not has_kernel(func):
            self.without_kernel.add(str(func))
        return func(*args, **(kwargs or {}))


class FakeWeights:
    """The tensors of a checkpoint, without values."""

    def __init__(self, folder: Path, device: NpuDevice) -> None:
        self._names = SafetensorsFolder(folder, torch.device("cpu"), device.dtype)
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=self._device.dtype, device=self._device.torch_device)

    def check_all_taken(self, ignored: object) -> None:
        pass


class ValuesOnTheHost(NpuAttentionStep):
    """The host knows its own numbers; only the device's have no values."""

    def _upload(self) -> PagedIndexes:
        with unset_fake_temporarily():
            return super()._upload()


class FakeUploads(NpuDevice):
    """What is uploaded has a shape and no values."""

    mode: FakeTensorMode

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        dtype = torch.int64 if values.dtype == np.int64 else torch.int32
        with self.mode:
            return torch.empty(values.shape, dtype=dtype, device=self.torch_device)

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return ValuesOnTheHost(inputs, self, self._mask)


# A decode, and a prefill of five whose block is fresh. Real: the host knows its own numbers.
INPUTS = AttentionInputs(
    block_size=128,
    counts=[1, 5],
    lengths=[200, 5],
    block_tables=torch.tensor([[1, 2], [3, 0]], dtype=torch.int32),
    slots=torch.tensor([2 * 128 + 71, *range(3 * 128, 3 * 128 + 5)]),
)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_step_waits_for_nothing_and_falls_back_nowhere(
    name: str, is_quantised: bool, tmp_path: Path
) -> None:
    folder = write(name, tmp_path)
    spec = ModelSpec.from_folder(folder)
    with FakeTensorMode() as fakes, NoFallback() as mode, torch.inference_mode():
        device = FakeUploads(1, is_quantised=is_quantised)
        device.mode = fakes
        shape = KvShape(spec.num_layers, 8, 128, spec.num_kv_heads, spec.head_dim)
        kv = [_layer(device, shape) for _ in range(spec.num_layers)]
        weights: Any = FakeWeights(folder, device)
        model = load_dense(spec, weights, device)
        tokens = torch.empty(6, dtype=torch.int64, device=device.torch_device)
        hidden = model.forward(tokens, tokens, device.begin_attention(INPUTS), kv)
        logits = model.logits(hidden[:2])
    assert logits.shape == (2, spec.vocab_size) and logits.dtype == torch.float32
    assert logits.device.type == "npu" and mode.without_kernel == set()


def _layer(device: NpuDevice, shape: KvShape) -> LayerKv:
    def cache() -> torch.Tensor:
        return torch.empty(shape.layer_shape, dtype=device.dtype, device=device.torch_device)

    return LayerKv(cache(), cache())


def test_the_detectors_see_what_they_are_for() -> None:
    with FakeTensorMode(), NoFallback() as mode:
        numbers = torch.empty(17, 64, dtype=torch.int8, device="npu")
        torch._int_mm(numbers, torch.empty(64, 32, dtype=torch.int8, device="npu"))
        assert mode.without_kernel == {"aten._int_mm.default"}
        with pytest.raises(DataDependentOutputException):
            torch.empty(3, device="npu").max().item()
        with pytest.raises(DynamicOutputShapeException):
            torch.empty(3, dtype=torch.bool, device="npu").nonzero()
        with pytest.raises(DataDependentOutputException):
            torch_npu.npu_fused_infer_attention_score(
                torch.empty(2, 2, 64, dtype=torch.bfloat16, device="npu"),
                torch.empty(4, 128, 128, dtype=torch.bfloat16, device="npu"),
                torch.empty(4, 128, 128, dtype=torch.bfloat16, device="npu"),
                actual_seq_lengths=torch.tensor([1, 2]),
                actual_seq_lengths_kv=[1, 1],
                block_table=torch.empty(2, 1, dtype=torch.int32, device="npu"),
                num_heads=2,
                input_layout="TND",
                block_size=128,
            )
