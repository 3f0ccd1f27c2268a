"""Tiers on their way from a deployment or a task executor's settings to its engine."""

from typing import Any

import pytest

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.flowserve.tiers.build import (
    TIER_BLOCKS_MAX,
    count_blocks,
    disk_block_bytes,
)
from services.task_executor.flowserve.tiers.disk_blocks import HEADER_BYTES
from services.task_executor.shell.translate import to_load


def deployment(**engine: Any) -> cluster_pb2.Deployment:
    return cluster_pb2.Deployment(
        name="m", source="/m", device="cpu", engine=cluster_pb2.EngineOptions(**engine)
    )


def test_what_a_deployment_says_goes_first() -> None:
    config = TaskExecutorConfig(
        cluster_token="token", kv_dram_bytes=10, kv_disk_bytes=20, kv_disk_folder="/scratch"
    )
    load = to_load(deployment(kv_dram_bytes=1 << 40), config.engine_settings, config.kv_disk_folder)
    assert load.settings == {"kv_dram_bytes": 1 << 40, "kv_disk_bytes": 20}
    assert load.kv_disk_folder == "/scratch"
    assert to_load(deployment(), {}).settings == {}


def test_a_tier_has_as_many_blocks_as_fit() -> None:
    assert count_blocks("kv_dram_bytes", 0, 100) == 0
    assert count_blocks("kv_dram_bytes", 399, 100) == 3
    for size in (99, (TIER_BLOCKS_MAX + 1) * 100):
        with pytest.raises(ValueError, match=r"kv_dram_bytes is .* block"):
            count_blocks("kv_dram_bytes", size, 100)


@pytest.mark.parametrize("field", ["kv_dram_bytes", "kv_disk_bytes"])
def test_a_deployment_that_cannot_be_is_refused(field: str) -> None:
    from services.cluster_manager.deployments.request import check_deployment

    asked = deployment(**{field: (1 << 50) + 1})
    asked.replicas = 1
    with pytest.raises(InvalidRequest) as refused:
        check_deployment(asked)
    assert refused.value.param == field


def test_a_block_on_disk_is_a_file_for_each_rank() -> None:
    assert disk_block_bytes(1000, ranks=4) == 1000 + 4 * HEADER_BYTES
