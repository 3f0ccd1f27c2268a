"""A process group over gloo and HCCL, of one rank, and its calls."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch_npu

from services.task_executor.devices.npu.device import NpuDevice


@pytest.fixture(scope="module")
def device() -> Iterator[NpuDevice]:
    device = NpuDevice(1)
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)  # type: ignore[attr-defined]
    dist.init_process_group(device.collectives, store=store, rank=0, world_size=1)
    yield device
    dist.destroy_process_group()


def test_each_kind_of_tensor_has_its_backend(device: NpuDevice) -> None:
    group = dist.distributed_c10d._get_default_group()
    kinds = {it: type(group._get_backend(torch.device(it))).__name__ for it in ("cpu", "npu")}
    assert kinds == {"cpu": "ProcessGroupGloo", "npu": "ProcessGroupHCCL"}


def test_collectives_run_on_both(device: NpuDevice) -> None:
    here = torch.arange(4.0)
    dist.all_reduce(here)
    assert here.tolist() == [0, 1, 2, 3]
    there = torch.empty(4, device=device.torch_device)
    dist.all_reduce(there)
    dist.broadcast(there, src=0)
    torch_npu.npu.synchronize()
    assert there.device == device.torch_device
