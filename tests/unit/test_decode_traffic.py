"""What a decode step has to read, and how near a run came to the device's memory."""

from pathlib import Path

import pytest
import torch

from deepflow.bench import random_model
from deepflow.bench.ceilings import (
    Counted,
    GemmCeiling,
    MemoryCeiling,
    ceiling_of,
    measure,
)
from deepflow.bench.copy_rate import COPIES, measure_copy_rate
from deepflow.bench.decode_traffic import DecodeTraffic, decode_sums
from deepflow.bench.sse_client import BenchError
from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.plain import NullEvent, NullStream
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.flowserve.step_trace import StepSpan
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

SHAPE = random_model.Shape("LlamaForCausalLM", "llama", 64, 96, 3, 4, 2, 16, 300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model.write(SHAPE, tmp_path)
    return tmp_path


def test_a_step_reads_every_weight_but_the_input_table(folder: Path) -> None:
    spec = ModelSpec.from_folder(folder)
    stored = sum(torch.Size(size).numel() for _, size in SHAPE.tensors())
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        traffic = DecodeTraffic.of(spec, dtype, "bfloat16")
        assert traffic.weight_bytes == (stored - 300 * 64) * size
        assert traffic.step_bytes([]) == traffic.weight_bytes


def test_kv_is_read_by_every_layer_for_every_row(folder: Path) -> None:
    traffic = DecodeTraffic.of(ModelSpec.from_folder(folder), "bfloat16", "bfloat16")
    kv = traffic.step_bytes([5, 7]) - traffic.weight_bytes
    assert kv == 3 * (5 + 7) * 2 * (2 * 16) * 2  # layers, tokens, K and V, heads, bf16


def test_a_window_bounds_what_its_layers_read() -> None:
    traffic = DecodeTraffic(weight_bytes=1000, token_bytes=10, windows=(None, 4))
    assert traffic.step_bytes([3, 9]) == 1000 + 10 * ((3 + 9) + (3 + 4))


def test_int8_weights_are_a_byte_each_and_kv_stays_float(folder: Path) -> None:
    spec = ModelSpec.from_folder(folder)
    traffic = DecodeTraffic.of(spec, "int8", "bfloat16")
    linears = 3 * (64 * 2 * (64 + 32) + 3 * 64 * 96) + 300 * 64
    assert linears < traffic.weight_bytes < 1.3 * linears
    assert traffic.token_bytes == DecodeTraffic.of(spec, "bfloat16", "bfloat16").token_bytes


def test_the_model_itself_holds_as_many_bytes(folder: Path) -> None:
    """Counted on the loaded tensors, not on the shape."""
    spec = ModelSpec.from_folder(folder)
    device = CpuDevice(1)
    held: dict[int, int] = {}

    class Counting(CpuDevice):
        def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> "object":  # type: ignore[override]
            held[len(held)] = weight.nbytes
            return super().pack_linear(weight, bias)

    weights = SafetensorsFolder(folder, device.torch_device, device.dtype)
    load_dense(spec, weights, Counting(1))
    norms = (2 * spec.num_layers + 1) * spec.hidden_size * 4
    traffic = DecodeTraffic.of(spec, "float32", "float32")
    assert sum(held.values()) + norms == traffic.weight_bytes


def span(
    step: int, ran: tuple[float, float], contexts: list[int], tokens: int | None = None
) -> StepSpan:
    count = len(contexts) if tokens is None else tokens
    return StepSpan(step, len(contexts), count, (0.0, 0.0), ran, contexts=contexts)


def test_only_steps_that_are_all_decodes_count() -> None:
    traffic = DecodeTraffic(weight_bytes=100, token_bytes=1, windows=(None,))
    spans = [
        span(0, (0.0, 1.0), [8], tokens=8),  # a prompt
        span(1, (1.0, 1.5), [9]),
        span(2, (1.6, 2.0), [10, 4], tokens=5),  # a decode beside a prompt
        span(3, (2.0, 2.25), [11, 5]),
        span(4, (2.5, 3.0), [12, 6]),
    ]
    sums = decode_sums(spans, traffic)
    assert sums == {
        "decode_steps": 3,
        "decode_bytes": 300 + 9 + 16 + 18,
        # The pause before step 4 is a part of what its rows wait.
        "decode_seconds": pytest.approx(0.5 + 0.25 + 0.75),
    }


def test_a_rest_with_nobody_there_is_no_step() -> None:
    traffic = DecodeTraffic(weight_bytes=100, token_bytes=1, windows=(None,))
    spans = [span(0, (0.0, 1.0), [8]), span(1, (50.0, 51.0), [9])]
    spans[0].is_last = True
    assert decode_sums(spans, traffic)["decode_steps"] == 0
    assert decode_sums([], traffic)["decode_steps"] == 0


def counted(sums: dict[str, float], devices: int = 1) -> Counted:
    return Counted(Path("model"), 8, 16, 32, 100.0, devices, sums)


def test_the_fraction_is_the_least_time_of_a_step_by_its_own() -> None:
    sums = {"decode_steps": 4.0, "decode_bytes": 8e9, "decode_seconds": 0.004}
    roofline = MemoryCeiling("cuda").hold(4e12, counted(sums))
    assert roofline.as_dict() == {
        "roofline": "memory",
        "copy_bytes_s": 4e12,
        "decode_step_bytes": 2e9,
        "decode_step_s": 0.001,
        "roofline_fraction": pytest.approx(0.5),
    }
    two = MemoryCeiling("cuda").hold(4e12, counted(sums, devices=2))
    assert two.roofline_fraction == pytest.approx(0.25)
    assert "0.50 of the roofline" in str(roofline)


def test_a_run_without_decodes_says_so() -> None:
    with pytest.raises(BenchError, match="longer --output"):
        MemoryCeiling("npu").hold(1e12, counted({"decode_steps": 0.0}))


def test_products_bound_cpus(folder: Path) -> None:
    run = Counted(folder, 4, 16, 8, 50.0, 1, {})
    roofline = GemmCeiling().hold(100.0, run)
    layer = 64 * 2 * (64 + 32) + 3 * 64 * 96
    gflop = 2e-9 * (4 * (16 + 8 - 1) * 3 * layer + 4 * 8 * 300 * 64)
    most = 4 * 8 * 100 / gflop
    assert roofline.as_dict() == {
        "roofline": "gemm",
        "gemm_gflops": 100.0,
        "roofline_tok_s": pytest.approx(most),
        "roofline_fraction": pytest.approx(50 / most),
    }


def test_every_device_has_its_kind_of_ceiling() -> None:
    kinds = {name: ceiling_of(name) for name in DEVICE_DTYPES}
    assert kinds.pop("cpu") == GemmCeiling()
    for name, ceiling in kinds.items():
        assert ceiling == (None if name.startswith("emulated:") else MemoryCeiling(name))


class CountingEvents(CpuDevice):
    """Whose clock is the copies that it was waited for."""

    waits = 0

    def current_stream(self) -> "NullStream":
        outer = self

        class Event(NullEvent):
            def wait(self) -> None:
                outer.waits += 1

        class Stream(NullStream):
            def record(self) -> Event:
                return Event()

        return Stream()


def test_copies_are_timed_until_the_device_has_made_them() -> None:
    device = CountingEvents(1)
    rate = measure_copy_rate(device, 1 << 20)
    assert 1e6 < rate < 1e13
    assert device.waits == 2 * 6 and COPIES > 1


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(BenchError, match="the device npu needs"):
        measure(MemoryCeiling("npu"))
