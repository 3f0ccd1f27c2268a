"""Tiers of a whole task executor: put away by its engine, gone with it, whatever ends it."""

import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from deepflow.v1 import cluster_pb2
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


async def test_blocks_are_put_away_and_gone_with_their_engine(
    server: TaskExecutorServer, folder: Path
) -> None:
    disk = Path(server.config.kv_disk_folder)

    def lives() -> set[Path]:
        return {path.parent for path in disk.glob("*/*.kv")}

    engine = cluster_pb2.EngineOptions(kv_dram_bytes=1 << 18, kv_disk_bytes=DISK_BYTES)
    async with JobExecutor(server) as je:
        await je.load(folder, engine=engine)
        answers = await fill(je, 1)
        assert await fill(je, 101) == answers
        await until(lambda: len(lives()) == 1, what="blocks on disk")
        (first,) = lives()
        assert server.engine.process is not None
        psutil.Process(server.engine.process.pid).send_signal(signal.SIGKILL)
        await until(lambda: first not in lives(), what="the next engine to clean up")
        await until(lambda: server.lifecycle.word == "ready", what="the next engine")
    async with JobExecutor(server) as je:
        assert await fill(je, 201) == answers
        await until(lambda: len(lives()) == 1, what="blocks on disk")
        await server.models.unload("m")
        assert not lives()
