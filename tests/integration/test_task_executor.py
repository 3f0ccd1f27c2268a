"""A whole task executor, shell and engine process, over its real gRPC face."""

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.errors import Conflict, DeepFlowError, InvalidRequest
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer
from tests.servers import until

TOKEN = "token"
VOCAB = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights: all that an emulated device reads."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[TaskExecutorServer]:
    """A test may change its settings."""
    config = TaskExecutorConfig(
        id="te-test",
        cluster_token=TOKEN,
        nats_url="nats://127.0.0.1:1",  # nobody there: a task executor must not mind
        cluster_manager_address="127.0.0.1:1",
        kv_store_address="127.0.0.1:1",
        **getattr(request, "param", {}),
    )
    server = TaskExecutorServer(config)
    await server.start()
    yield server
    await server.stop()


class JobExecutor:
    """The other end of the Tasks stream."""

    def __init__(self, server: TaskExecutorServer) -> None:
        self.peer = Peer(server.address, TOKEN)
        self.stub: Any = TaskExecutorServiceStub(self.peer.channel)
        self.stream: Any = None
        self._unread: list[tasks_pb2.TaskTokenBatch] = []

    async def __aenter__(self) -> "JobExecutor":
        self.stream = self.stub.Tasks(metadata=self.peer.metadata)
        hello = tasks_pb2.TasksHello(job_executor_id="je-test", incarnation=1)
        await self.stream.write(tasks_pb2.TasksRequest(hello=hello))
        assert (await self.stream.read()).welcome.task_executor_id == "te-test"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stream.cancel()
        await self.peer.close()

    async def load(self, folder: Path, **changes: Any) -> cluster_pb2.Capabilities:
        deployment = cluster_pb2.Deployment(
            **{"name": "m", "source": str(folder), "device": "emulated:zero", **changes}
        )
        request = tasks_pb2.LoadModelRequest(deployment=deployment)
        reply: tasks_pb2.LoadModelResponse = await self.peer.call(
            self.stub.LoadModel, request, timeout_seconds=60
        )
        return reply.capabilities

    async def submit(self, handle: int, prompt: list[int], max_tokens: int, **extra: Any) -> None:
        sampling = types.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        task = tasks_pb2.Task(
            id=f"task-{handle}", model="m", sampling=sampling, prompt_token_ids=prompt, **extra
        )
        submit = tasks_pb2.SubmitTask(handle=handle, task=task)
        await self.stream.write(tasks_pb2.TasksRequest(submit=submit))

    async def cancel(self, handle: int) -> None:
        await self.stream.write(tasks_pb2.TasksRequest(cancel=tasks_pb2.CancelTask(handle=handle)))

    async def until_accepted(self) -> None:
        """What was told with it, tokens perhaps, is collected later."""
        batch = await self._read()
        assert batch.accepted_handles
        self._unread.append(batch)

    async def collect(self, handles: set[int]) -> tuple[dict[int, list[int]], dict[int, Any]]:
        """Every handle's tokens, checked to be without gap, and how it finished."""
        tokens: dict[int, list[int]] = {handle: [] for handle in handles}
        first: dict[int, int] = {}
        finished: dict[int, Any] = {}
        while set(finished) < handles:
            batch = self._unread.pop() if self._unread else await self._read()
            position = 0
            for handle, index, count in zip(
                batch.handles, batch.first_token_indexes, batch.token_counts, strict=True
            ):
                first.setdefault(handle, index)
                assert index == first[handle] + len(tokens[handle])
                tokens[handle] += batch.token_ids[position : position + count]
                position += count
            finished.update({end.handle: end for end in batch.finished})
        return tokens, finished

    async def _read(self) -> tasks_pb2.TaskTokenBatch:
        batch: tasks_pb2.TaskTokenBatch = (await asyncio.wait_for(self.stream.read(), 30)).tokens
        return batch


async def test_tasks_stream_through_shell_and_engine(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        capabilities = await je.load(folder)
        assert capabilities.block_size > 0
        assert server.lifecycle.word == "ready"
        for handle in range(8):
            await je.submit(handle, [handle + 3] * 20, 30)
        tokens, finished = await je.collect(set(range(8)))
        assert all(len(t) == 30 for t in tokens.values())
        assert len({tuple(t) for t in tokens.values()}) == 8
        assert {f.reason for f in finished.values()} == {types.FINISH_REASON_LENGTH}
        assert finished[0].usage.prompt_tokens == 20


async def test_a_resumed_task_goes_on_where_it_was(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder)
        await je.submit(1, [5] * 20, 40)
        whole = (await je.collect({1}))[0][1]
        await je.submit(2, [5] * 20, 40, resume_token_ids=whole[:15])
        assert (await je.collect({2}))[0][2] == whole[15:]


async def test_one_bad_task_fails_alone(server: TaskExecutorServer, folder: Path) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder)
        await je.submit(1, [5] * 20, 20)
        await je.submit(2, [VOCAB], 20)
        await je.submit(3, [], 20)
        await je.submit(4, [5] * 600, 20)
        tokens, finished = await je.collect({1, 2, 3, 4})
        assert len(tokens[1]) == 20
        for handle in (2, 3, 4):
            assert finished[handle].error.code == types.ERROR_CODE_INVALID_REQUEST


async def test_a_cancelled_task_ends_and_frees_its_blocks(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder, device="emulated:ascend-910b")
        handles = itertools.count(1)

        async def is_cancelled() -> bool:
            """Unless it ended before the word came."""
            handle = next(handles)
            await je.submit(handle, [5] * 20, 480)
            await je.cancel(handle)
            _, finished = await je.collect({handle})
            return bool(finished[handle].reason == types.FINISH_REASON_CANCELLED)

        await until(is_cancelled, what="an answer that is cancelled")
        await server._peers.wait_idle()


async def test_a_job_executor_that_leaves_cancels_its_work(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder, device="emulated:ascend-910b")
        await je.submit(1, [5] * 20, 480)
        await je.until_accepted()
    await until(lambda: server._peers.num_tasks == 0, what="the task is gone")
    await until(lambda: server._meter.running == 0, what="the engine runs nothing")


async def test_a_lost_engine_fails_its_tasks_and_comes_back_with_the_model(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder, device="emulated:ascend-910b")
        process = server.engine.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)  # or its answer ends while nobody looks
        await je.submit(1, [5] * 20, 480)
        await until(lambda: server._peers.num_tasks == 1, what="the task")
        process.send_signal(signal.SIGKILL)
        _, finished = await je.collect({1})
        assert finished[1].error.code == types.ERROR_CODE_UNAVAILABLE
        await until(lambda: server.lifecycle.word == "ready", what="ready again")
        await je.submit(2, [5] * 20, 5)
        assert len((await je.collect({2}))[0][2]) == 5


@pytest.mark.parametrize("server", [{"load_timeout_seconds": 0.001}], indirect=True)
async def test_a_load_that_takes_too_long_is_given_up_with_its_engine(
    server: TaskExecutorServer, folder: Path
) -> None:
    hung = server.engine.process
    async with JobExecutor(server) as je:
        with pytest.raises(DeepFlowError):
            await je.load(folder)
    assert hung is not None
    assert await asyncio.wait_for(hung.wait(), 30) == -signal.SIGKILL
    await until(lambda: server.engine.process is not hung, what="another engine")
    assert server.lifecycle.word == "blank"


async def test_the_same_load_twice_is_one_load_and_another_is_refused(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        first, second = await asyncio.gather(je.load(folder), je.load(folder))
        assert first == second
        with pytest.raises(Conflict, match="unload"):
            await je.load(folder, name="other")
        unload = tasks_pb2.UnloadModelRequest(deployment="m")
        await je.peer.call(je.stub.UnloadModel, unload, timeout_seconds=30)
        assert server.lifecycle.word == "blank"
        assert (await je.load(folder, name="other")).device == "emulated:zero"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"device": "emulated:abacus"}, "ascend-910b"), ({"source": "/nowhere"}, "nowhere")],
)
async def test_a_load_that_fails_says_why_and_leaves_it_blank(
    server: TaskExecutorServer, folder: Path, changes: dict[str, str], message: str
) -> None:
    async with JobExecutor(server) as je:
        with pytest.raises(InvalidRequest, match=message):
            await je.load(folder, **changes)
        assert server.lifecycle.word == "blank"
        assert message in server.lifecycle.detail
        assert (await je.load(folder)).kv_blocks > 0


async def test_a_stream_must_begin_with_a_hello(server: TaskExecutorServer) -> None:
    peer = Peer(server.address, TOKEN)
    stream: Any = TaskExecutorServiceStub(peer.channel).Tasks(metadata=peer.metadata)
    await stream.write(tasks_pb2.TasksRequest(cancel=tasks_pb2.CancelTask(handle=1)))
    with pytest.raises(Exception, match="hello") as caught:
        await stream.read()
    assert not isinstance(caught.value, DeepFlowError)
    await peer.close()


async def test_a_leader_of_an_older_term_is_refused(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as client:

        async def call(method: Any, request: Any) -> Any:
            return await client.peer.call(method, request, timeout_seconds=30)

        deployment = cluster_pb2.Deployment(name="m", source=str(folder), device="emulated:zero")
        load = tasks_pb2.LoadModelRequest(deployment=deployment, term=7, content="this one")
        await call(client.stub.LoadModel, load)
        assert server.models._member.content == "this one"
        stale = tasks_pb2.UnloadModelRequest(deployment="m", term=6)
        with pytest.raises(Conflict, match="term 6 is over") as refusal:
            await call(client.stub.UnloadModel, stale)
        assert refusal.value.reason == "stale_term"
        assert server.lifecycle.word == "ready"
        load.term = 6
        with pytest.raises(Conflict):
            await call(client.stub.LoadModel, load)
        await call(client.stub.UnloadModel, tasks_pb2.UnloadModelRequest(deployment="m", term=8))
        assert server.lifecycle.word == "blank" and not server.models._member.content


async def test_an_unload_waits_for_running_tasks_and_takes_no_more(
    server: TaskExecutorServer, folder: Path
) -> None:
    async with JobExecutor(server) as client:
        await client.load(folder, device="emulated:ascend-910b")
        seen: list[str] = []
        server.lifecycle.on_change(lambda: seen.append(server.lifecycle.word))
        await client.submit(1, [1, 2, 3], 480)
        await client.until_accepted()
        request = tasks_pb2.UnloadModelRequest(deployment="m", grace_seconds=30)
        unloading = asyncio.create_task(
            client.peer.call(client.stub.UnloadModel, request, timeout_seconds=40)
        )
        await until(lambda: "loading" in seen, what="the unload to begin")
        await client.submit(2, [1], 1)
        tokens, ends = await client.collect({1, 2})
        assert len(tokens[1]) == 480
        assert ends[2].reason == types.FINISH_REASON_ERROR
        await unloading
        assert server.lifecycle.word == "blank"
