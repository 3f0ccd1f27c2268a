"""Tiers of a whole task executor: put away by its engine, gone with it, whatever ends it."""

import contextlib
import itertools
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from deepflow.v1 import cluster_pb2, events_pb2
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer
from tests.integration.test_task_executor import TOKEN, VOCAB, JobExecutor, folder
from tests.servers import until

__all__ = ["folder"]  # a fixture

DISK_BYTES = 1 << 20


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TaskExecutorServer]:
    config = TaskExecutorConfig(
        id="te-test",
        cluster_token=TOKEN,
        nats_url="nats://127.0.0.1:1",  # nobody there: a task executor must not mind
        cluster_manager_address="127.0.0.1:1",
        kv_store_address="127.0.0.1:1",
        kv_blocks=40,
        kv_disk_folder=str(tmp_path_factory.mktemp("disk")),
    )
    server = TaskExecutorServer(config)
    await server.start()
    yield server
    await server.stop()


async def fill(je: JobExecutor, first: int) -> list[list[int]]:
    """More than the device holds; answers the answers."""
    draw = random.Random(5)
    prompts = [[draw.randrange(3, VOCAB) for _ in range(100)] for _ in range(12)]
    handles = range(first, first + len(prompts))
    for handle, prompt in zip(handles, prompts, strict=True):
        await je.submit(handle, prompt, 8)
    tokens, finished = await je.collect(set(handles))
    assert all(not end.HasField("error") for end in finished.values())
    return [tokens[handle] for handle in handles]


async def require_that_all_is_seen(server: TaskExecutorServer) -> None:
    """What the capabilities, a heartbeat and a scrape say of the tiers."""
    capabilities = server.models._capabilities
    assert capabilities.kv_dtype == "float32"
    block_bytes = capabilities.kv_bytes // capabilities.kv_blocks
    assert (1 << 18) - block_bytes < capabilities.kv_dram_bytes <= 1 << 18
    assert 0 < capabilities.kv_disk_bytes < DISK_BYTES
    sizes = [
        capabilities.kv_bytes - block_bytes,  # one block is nobody's
        capabilities.kv_dram_bytes,
        capabilities.kv_disk_bytes,
    ]

    def is_told() -> bool:
        beat = events_pb2.Heartbeat()
        server._fill_load(beat)
        tiers = beat.load.kv_tiers
        assert [(it.name, it.bytes) for it in tiers] == [
            *zip(("device", "dram", "disk"), sizes, strict=True)
        ]
        return all(it.kept_bytes and not it.used_bytes for it in tiers)

    await until(is_told, what="every tier to keep something, and nobody to hold any of it")
    # Values of labels in the order of their names.
    samples = {
        (
            metric.name.removeprefix("deepflow_task_executor_"),
            *(value for _, value in sorted(it.labels.items())),
        ): it.value
        for metric in server._metrics.collect()
        for it in metric.samples
    }
    assert samples["kv_copies", "ok", "device", "dram"] > 0
    assert samples["kv_copies", "ok", "dram", "disk"] > 0
    asked = server._meter.prompt_tokens
    assert samples["kv_missed_tokens",] + samples["kv_hit_tokens", "device"] <= asked
    assert samples["kv_tier_bytes", "free", "disk"] < capabilities.kv_disk_bytes


async def test_blocks_are_put_away_and_gone_with_their_engine(
    server: TaskExecutorServer, folder: Path
) -> None:
    disk = Path(server.config.kv_disk_folder)

    def lives() -> set[Path]:
        with contextlib.suppress(FileNotFoundError):  # removed at this moment
            return {path.parent for path in disk.glob("*/*.kv")}
        return set()

    engine = cluster_pb2.EngineOptions(kv_dram_bytes=1 << 18, kv_disk_bytes=DISK_BYTES)
    rounds = itertools.count(1, 100)
    async with JobExecutor(server) as je:

        async def puts_blocks_on_disk() -> bool:
            """What is put away depends on who is quicker: the swapping, or those who need room."""
            assert await fill(je, next(rounds)) == answers
            return len(lives()) == 1

        await je.load(folder, engine=engine)
        answers = await fill(je, next(rounds))
        await until(puts_blocks_on_disk, what="blocks on disk")
        (first,) = lives()
        await require_that_all_is_seen(server)
        assert server.engine.process is not None
        psutil.Process(server.engine.process.pid).send_signal(signal.SIGKILL)
        await until(lambda: first not in lives(), what="the next engine to clean up")
        await until(lambda: server.lifecycle.word == "ready", what="the next engine")
    async with JobExecutor(server) as je:
        await until(puts_blocks_on_disk, what="blocks on disk")
        await server.models.unload("m")
        assert not lives()
