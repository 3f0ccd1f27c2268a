"""The whole dense model on device 'npu' against the CPU: the references are the only kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.npu import linear
from services.task_executor.devices.npu.device import NpuDevice
from tests.npu.checkpoints import ODD, prompt, write
from tests.npu.on_cpu import NpuOnCpu
from tests.npu.rig import Rig, Running, run_mixed

PROMPTS = [prompt(150, 1), prompt(3, 2), prompt(128, 3), prompt(1, 4)]
STEPS = 4


@pytest.fixture(params=ODD)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(request.param, tmp_path)


def test_prefill_and_decode_mixed_equal_the_cpu(folder: Path) -> None:
    wanted = run_mixed(Rig(folder, CpuDevice(1)), PROMPTS, STEPS)
    with NpuOnCpu() as mode:
        rig = Rig(folder, NpuDevice(1, torch.float32))
        got = run_mixed(rig, PROMPTS, STEPS)
    for one, other in zip(got, wanted, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.allclose(
            torch.stack(one.logits).log_softmax(-1),
            torch.stack(other.logits).log_softmax(-1),
            atol=1e-4,
        )
    assert mode.without_kernel == set()
    steps = 2 * len(PROMPTS) - 1 + STEPS
    assert mode.calls["npu::npu_scatter_pa_kv_cache"] == steps * rig.spec.num_layers
    assert mode.calls["npu::npu_fused_infer_attention_score"] == steps * rig.spec.num_layers
    assert mode.calls["npu::npu_add_rms_norm"] == steps * (2 * rig.spec.num_layers - 1)
    is_silu = rig.spec.activation == "silu"
    assert mode.calls["npu::npu_swiglu"] == (steps * rig.spec.num_layers if is_silu else 0)


def test_what_it_serves_in_is_bf16(folder: Path) -> None:
    """Eight bits of mantissa on both sides, rounded at other places."""
    wanted = Rig(folder, CpuDevice(1, "bfloat16"))
    with NpuOnCpu():
        got = Rig(folder, NpuDevice(1))
        assert got.device.dtype == torch.bfloat16
        assert _closeness(got, wanted) > 0.995


def test_w8a8_agrees_with_the_cpus_int8(folder: Path) -> None:
    wanted = Rig(folder, CpuDevice(1, "int8"))
    with NpuOnCpu() as mode:
        got = Rig(folder, NpuDevice(1, is_quantised=True))
        assert _closeness(got, wanted) > 0.99
    assert mode.without_kernel == set()
    linears = 4 * got.spec.num_layers + 1
    assert mode.calls["npu::npu_quant_matmul"] == mode.calls["npu::npu_dynamic_quant"] == linears


def _closeness(one: Rig, other: Rig) -> float:
    """Cosine of what the two say of the same prompts, run in one step each."""
    sequences = [[_sequence(it, index) for index, it in enumerate(PROMPTS)] for _ in range(2)]
    said, wanted = (
        rig.step([(row, len(row.token_ids)) for row in rows])
        for rig, rows in zip((one, other), sequences, strict=True)
    )
    return float(torch.cosine_similarity(said, wanted, dim=-1).min())


def _sequence(token_ids: list[int], index: int) -> Running:
    return Running(token_ids, [2 * index + 1, 2 * index + 2])


def test_a_block_of_an_earlier_owner_is_wiped(tmp_path: Path) -> None:
    folder = write("llama: gqa-2", tmp_path)
    wanted = run_mixed(Rig(folder, CpuDevice(1)), PROMPTS, 1)
    with NpuOnCpu():
        rig = Rig(folder, NpuDevice(1, torch.float32))
        for kv in rig.kv:
            kv.keys.fill_(torch.nan)
            kv.values.fill_(torch.nan)
        got = run_mixed(rig, PROMPTS, 1)
    assert [it.token_ids for it in got] == [it.token_ids for it in wanted]


def test_kv_memory_is_aligned_for_transfers(tmp_path: Path) -> None:
    folder = write("llama: gqa-2", tmp_path)
    with NpuOnCpu():
        device = NpuDevice(1)
        before = device.memory_available()
        rig = Rig(folder, device)
    taken = 0
    for kv in rig.kv:
        for cache in (kv.keys, kv.values):
            assert cache.data_ptr() % (2 << 20) == 0 and cache.device.type == "npu"
            taken += cache.nbytes
    assert device.memory_available() <= before - taken


@pytest.mark.parametrize("outputs_max", [65_535, 24])
def test_an_int8_linear_is_what_its_scales_say(
    outputs_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its outputs are more than one call takes."""
    monkeypatch.setattr(linear, "QUANTISED_WIDTH_MAX", outputs_max)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 24, generator=generator)
    weight[5] = 0
    weight[7] *= 1e-3  # a quiet channel keeps its precision beside loud ones
    bias = torch.randn(40, generator=generator).bfloat16()
    bias[7] = 0
    rows = torch.randn(6, 24, generator=generator).bfloat16()
    rows[2] *= 1000  # one loud row changes no other
    with NpuOnCpu() as mode:
        device = NpuDevice(1, is_quantised=True)
        layer = device.pack_linear(
            device.to_device(weight.numpy()).bfloat16(),
            device.to_device(bias.float().numpy()).bfloat16(),
        )
        inputs = device.to_device(rows.float().numpy()).bfloat16()
        got = device.to_host(layer(inputs)).get().float()
        alone = device.to_host(layer(inputs[1:2])).get().float()
    exact = rows.float() @ weight.T + bias.float()
    assert torch.equal(got[1:2], alone)
    assert mode.calls["npu::npu_quant_matmul"] == 2 * -(-40 // min(outputs_max, 40))
    # Every value by the sizes of its own row and channel; bf16 rounds what comes out.
    sizes = rows.float().norm(dim=1)[:, None] * weight.norm(dim=1)
    assert bool(((got - exact).abs() <= 0.01 * sizes + exact.abs() / 128).all())
    assert np.allclose(got[:, 5], bias[5].float())
