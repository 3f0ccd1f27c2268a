"""Questions that documentation leaves open: what a card does, in words. None of them can fail."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch_npu

from services.task_executor.devices.base import DecodeGraph
from services.task_executor.devices.npu.attention import causal_mask
from services.task_executor.devices.npu.device import NpuDevice
from services.task_executor.devices.npu.graph import NpuDecodeGraph
from tools.device_checks.operations import BLOCK_SIZE
from tools.device_checks.replays import replays_in_a_row
from tools.device_checks.verdict import OBSERVED, Found

HEAD_DIM = 128


def negative_slots(device: NpuDevice) -> Found:
    """Other engines pad with -1; we pad with slots of the trash block."""
    cache = torch.zeros(2, BLOCK_SIZE, 1, HEAD_DIM, dtype=device.dtype, device="npu")
    values = torch.zeros_like(cache)
    new = torch.ones(2, 1, HEAD_DIM, dtype=device.dtype, device="npu")
    slots = torch.tensor([-1, 3], dtype=torch.int32).to("npu")
    torch_npu.npu_scatter_pa_kv_cache(new, new, cache, values, slots, cache_mode="Norm")
    written = (cache.cpu().float().flatten(2).sum(-1) != 0).flatten().nonzero().flatten().tolist()
    return OBSERVED, f"slots written for [-1, 3]: {written} ([3] means that -1 is skipped)"


def windows_of_decodes(device: NpuDevice) -> Found:
    """Does a band count where a sequence has one query? Its documentation says no."""
    length, window = 100, 8
    keys = torch.zeros(2, BLOCK_SIZE, HEAD_DIM, dtype=device.dtype, device="npu")
    values = torch.arange(2 * BLOCK_SIZE).view(2, BLOCK_SIZE, 1).expand(-1, -1, HEAD_DIM)
    attended = torch_npu.npu_fused_infer_attention_score(
        torch.zeros(1, 1, HEAD_DIM, dtype=device.dtype, device="npu"),
        keys,
        (values - BLOCK_SIZE).to(device.dtype).contiguous().to("npu"),
        atten_mask=causal_mask(device.torch_device),
        block_table=torch.ones(1, 1, dtype=torch.int32).to("npu"),
        actual_seq_lengths=[1],
        actual_seq_lengths_kv=[length],
        num_heads=1,
        num_key_value_heads=1,
        scale=1.0,
        input_layout="TND",
        block_size=BLOCK_SIZE,
        sparse_mode=4,
        pre_tokens=window,
        next_tokens=0,
    )[0]
    # All keys weigh the same, so the answer is the mean position of what was seen.
    mean = float(attended.cpu().float().mean())
    seen = round(2 * (length - 1 - mean)) + 1
    return OBSERVED, f"pre_tokens={window} at length {length}: sees about {seen} keys"


def replays_that_wait_for_nobody(folder: Path, device: NpuDevice) -> Found:
    def forget_the_last(graph: DecodeGraph) -> None:
        assert isinstance(graph, NpuDecodeGraph)
        graph._last_replay = None

    return OBSERVED, replays_in_a_row(folder, device, forget_the_last)[1]


def probes(folder: Path, device: NpuDevice) -> dict[str, Callable[[], Found]]:
    return {
        "graph replays beside eager steps": lambda: replays_in_a_row(folder, device),
        "replays that wait for nobody": lambda: replays_that_wait_for_nobody(folder, device),
        "negative slots": lambda: negative_slots(device),
        "windows of decodes": lambda: windows_of_decodes(device),
    }
