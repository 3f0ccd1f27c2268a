"""A real job executor between a scripted task executor and a client that speaks as a gateway."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tokenizers import Tokenizer

from deepflow import rpc
from deepflow.v1 import cluster_pb2, jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.jobs_pb2_grpc import JobExecutorServiceStub
from deepflow.v1.tasks_pb2_grpc import (
    TaskExecutorServiceServicer,
    add_TaskExecutorServiceServicer_to_server,
)
from services.job_executor.config import JobExecutorConfig
from services.job_executor.server import JobExecutorServer
from tests.servers import until
from tests.unit.job_executor.model_folders import TEMPLATE, byte_level_tokenizer, write_folder

TOKEN = "open sesame"
NOWHERE = "127.0.0.1:1"
SECONDS = 30.0  # of a call that is answered in milliseconds
INCARNATION = 77


class FakeTaskExecutor(TaskExecutorServiceServicer):
    """Real gRPC, scripted answers. Accepts every task unless told otherwise."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.accepts = True
        self.refusal: types.Error | None = None
        self.tasks: dict[int, tasks_pb2.Task] = {}  # by handle, in order of arrival
        self.cancelled: list[int] = []
        self.address = ""
        self._out: asyncio.Queue[tasks_pb2.TaskTokenBatch | None] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = rpc.new_server(TOKEN)
        add_TaskExecutorServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{await rpc.listen(self._server, '127.0.0.1', port)}"

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def LoadModel(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    UnloadModel = LoadModel

    async def Tasks(
        self, request_iterator: AsyncIterator[tasks_pb2.TasksRequest], context: Any
    ) -> AsyncIterator[tasks_pb2.TasksResponse]:
        first = await anext(aiter(request_iterator))
        assert first.hello.job_executor_id
        self._out = asyncio.Queue()
        welcome = tasks_pb2.TasksWelcome(task_executor_id=self.id, incarnation=INCARNATION)
        yield tasks_pb2.TasksResponse(welcome=welcome)
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while (batch := await self._out.get()) is not None:
                yield tasks_pb2.TasksResponse(tokens=batch)
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[tasks_pb2.TasksRequest]) -> None:
        async for request in requests:
            if request.HasField("cancel"):
                self.cancelled.append(request.cancel.handle)
                continue
            handle = request.submit.handle
            self.tasks[handle] = request.submit.task
            if self.refusal is not None:
                self.finish(handle, types.FINISH_REASON_ERROR, error=self.refusal)
            elif self.accepts:
                self.send(tasks_pb2.TaskTokenBatch(accepted_handles=[handle]))

    def send(self, batch: tasks_pb2.TaskTokenBatch) -> None:
        batch.te_incarnation = INCARNATION
        self._out.put_nowait(batch)

    def end_stream(self) -> None:
        self._out.put_nowait(None)

    def emit(self, handle: int, ids: list[int], first: int = 0) -> None:
        self.send(
            tasks_pb2.TaskTokenBatch(
                handles=[handle],
                first_token_indexes=[first],
                token_counts=[len(ids)],
                token_ids=ids,
                logprobs=[-0.5] * len(ids),
            )
        )

    def finish(
        self,
        handle: int,
        reason: types.FinishReason.ValueType = types.FINISH_REASON_STOP,
        *,
        cached: int = 0,
        error: types.Error | None = None,
    ) -> None:
        usage = types.Usage(cached_tokens=cached)
        end = tasks_pb2.TaskFinished(handle=handle, reason=reason, usage=usage, error=error)
        self.send(tasks_pb2.TaskTokenBatch(finished=[end]))

    async def task(self, number: int = 1) -> tuple[int, tasks_pb2.Task]:
        """(handle, task) of the `number`-th task that came."""
        await until(lambda: len(self.tasks) >= number, what=f"task {number} at {self.id}")
        return list(self.tasks.items())[number - 1]


# A token's bytes, and its alternatives: id, bytes and logprob of each.
TokenDetail = tuple[bytes, list[tuple[int, bytes, float]]]


def split_details(details: jobs_pb2.TokenDetails) -> list[TokenDetail]:
    """By token; the columns must be used up."""
    columns = (details.top_token_ids, details.top_token_bytes, details.top_logprobs)
    tops = iter(list(zip(*columns, strict=True)))
    pairs = zip(details.token_bytes, details.top_counts, strict=True)
    tokens = [(content, list(islice(tops, count))) for content, count in pairs]
    assert next(tops, None) is None
    return tokens


class Gateway:
    """One Jobs stream; keeps what arrives, by kind and by choice."""

    def __init__(self, address: str) -> None:
        self._peer = rpc.Peer(address, TOKEN)
        self.stub = JobExecutorServiceStub(self._peer.channel)
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self.welcome = jobs_pb2.JobsWelcome()
        self.admitted: set[int] = set()
        self.queued: set[int] = set()
        self.refused: dict[int, types.Error] = {}
        self.texts: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        self.token_ids: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.finished: dict[tuple[int, int], jobs_pb2.ChoiceFinished] = {}
        self.incarnations: set[int] = set()
        self.details: defaultdict[tuple[int, int], list[TokenDetail]] = defaultdict(list)
        self.prompts: dict[tuple[int, int], jobs_pb2.ChoicePrompt] = {}
        self.calls: defaultdict[tuple[int, int], list[jobs_pb2.ToolCallDelta]] = defaultdict(list)
        self.failure: grpc.aio.AioRpcError | None = None

    async def open(self, *, say_hello: bool = True) -> None:
        self._call = self.stub.Jobs(metadata=self._peer.metadata)
        if say_hello:
            await self.send(hello=jobs_pb2.JobsHello(gateway_id="gw-1", incarnation=1))
            self.welcome = (await self._call.read()).welcome
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._call is not None:
            self._call.cancel()
        await self._peer.close()

    async def call(self, method: Any, request: Any) -> Any:
        """One unary call; raises the error that the job executor answers with."""
        return await self._peer.call(method, request, timeout_seconds=SECONDS)

    async def send(self, **kind: Any) -> None:
        await self._call.write(jobs_pb2.JobsRequest(**kind))

    async def submit(self, handle: int, window: int = 1000, **fields: Any) -> None:
        await self.send(
            submit=jobs_pb2.SubmitJob(handle=handle, job=make_job(**fields), token_window=window)
        )

    async def until_admitted(self, handle: int) -> None:
        await until(lambda: handle in self.admitted or handle in self.refused, what="an answer")
        assert handle in self.admitted, self.refused

    async def until_refused(self, handle: int) -> types.Error:
        await until(lambda: handle in self.admitted or handle in self.refused, what="an answer")
        return self.refused[handle]

    async def until_finished(self, handle: int, choice: int = 0) -> jobs_pb2.ChoiceFinished:
        await until(lambda: (handle, choice) in self.finished, what="the end of a choice")
        return self.finished[handle, choice]

    async def until_tokens(self, count: int, handle: int = 1, choice: int = 0) -> None:
        key = (handle, choice)
        await until(lambda: len(self.token_ids[key]) >= count, what=f"{count} tokens")

    async def until_broken(self) -> grpc.aio.AioRpcError:
        await until(lambda: self.failure is not None, what="the end of the stream")
        assert self.failure is not None
        return self.failure

    def text(self, handle: int = 1, choice: int = 0) -> str:
        end = self.finished.get((handle, choice))
        return "".join(self.texts[handle, choice]) + (end.text_tail if end else "")

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._note(response)
        except grpc.aio.AioRpcError as error:
            self.failure = error

    def _note(self, response: jobs_pb2.JobsResponse) -> None:
        if response.HasField("admitted"):
            self.admitted.add(response.admitted.handle)
        elif response.HasField("queued"):
            self.queued.add(response.queued.handle)
        elif response.HasField("refused"):
            self.refused[response.refused.handle] = response.refused.error
        else:
            self._note_tokens(response.tokens)

    def _note_tokens(self, batch: jobs_pb2.JobTokenBatch) -> None:
        assert len(batch.token_ids) == len(batch.texts) == len(batch.logprobs)
        for prompt in batch.prompts:
            key = (prompt.handle, prompt.choice_index)
            assert key not in self.prompts and not self.token_ids[key], "a prompt comes once, first"
            self.prompts[key] = prompt
        for details in batch.details:
            entry = details.entry
            assert len(details.token_bytes) == batch.token_counts[entry]
            key = (batch.handles[entry], batch.choice_indexes[entry])
            self.details[key] += split_details(details)
        position = 0
        for handle, choice, first, count, incarnation in zip(
            batch.handles,
            batch.choice_indexes,
            batch.first_token_indexes,
            batch.token_counts,
            batch.te_incarnations,
            strict=True,
        ):
            assert handle in self.admitted
            key, end = (handle, choice), position + count
            if not self.token_ids[key]:
                self.token_ids[key] = [0] * first  # a resumed choice starts later
            assert len(self.token_ids[key]) == first, "a token was lost or repeated"
            self.token_ids[key] += batch.token_ids[position:end]
            self.texts[key] += batch.texts[position:end]
            self.incarnations.add(incarnation)
            position = end
        for delta in batch.tool_calls:
            self._note_call(delta)
        for finished in batch.finished:
            key = (finished.handle, finished.choice_index)
            assert key not in self.finished, "an end was told twice"
            self.finished[key] = finished

    def _note_call(self, delta: jobs_pb2.ToolCallDelta) -> None:
        calls = self.calls[delta.handle, delta.choice_index]
        if delta.call_index == len(calls):
            assert delta.id and delta.name, "a call begins with its id and name"
            calls.append(delta)
        else:
            assert delta.call_index == len(calls) - 1 and not delta.id and not delta.name
            calls[-1].arguments += delta.arguments


def make_job(
    *, chat: str = "", prompt: str | list[int] | None = None, n: int = 1, **fields: Any
) -> jobs_pb2.Job:
    job = jobs_pb2.Job(id="job-1", model="demo", n=n)
    job.context.request_id = "req-1"
    job.context.trace.traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    if chat:
        job.chat.messages.add(role="user", content=chat)
    elif isinstance(prompt, list):
        job.completion.prompts.add(tokens=jobs_pb2.TokenIds(ids=prompt))
    elif prompt is not None:
        job.completion.prompts.add(text=prompt)
    job.MergeFrom(jobs_pb2.Job(**fields))
    return job


class Rig:
    """Members come and go by `show`, as the cluster manager would push them."""

    def __init__(self, server: JobExecutorServer, folder: Path) -> None:
        self.server = server
        self.deployment = cluster_pb2.Deployment(
            name="demo",
            source=str(folder),
            facts=cluster_pb2.ModelFacts(
                context_length=256, vocab_size=420, model_revision="1", has_chat_template=True
            ),
        )
        self.tokens_max = 200  # of every task executor that is shown
        self.sequences = self.step_tokens = self.block_size = 0  # likewise; 0 = not told
        self._version = 0

    async def show(
        self, *executors: FakeTaskExecutor, deployments: list[cluster_pb2.Deployment] | None = None
    ) -> None:
        """A new view; returns once the job executor is linked to all of it."""
        self.push(*executors, deployments=deployments)
        await until(lambda: self.num_live >= len(executors), what="links to the task executors")

    def push(
        self, *executors: FakeTaskExecutor, deployments: list[cluster_pb2.Deployment] | None = None
    ) -> None:
        self._version += 1
        chosen = [self.deployment] if deployments is None else deployments
        self.server.membership.adopt(
            cluster_pb2.ClusterView(
                term=1,
                version=self._version,
                members=[_member(executor, self._capabilities) for executor in executors],
                deployments=chosen,
            )
        )

    @property
    def _capabilities(self) -> cluster_pb2.Capabilities:
        return cluster_pb2.Capabilities(
            max_tokens=self.tokens_max,
            max_sequences=self.sequences,
            max_step_tokens=self.step_tokens,
            block_size=self.block_size,
        )

    @property
    def num_live(self) -> int:
        return self.server.links.num_live

    async def gateway(self) -> Gateway:
        gateway = Gateway(self.server.membership.member.address)
        await gateway.open()
        return gateway


def _member(
    executor: FakeTaskExecutor, capabilities: cluster_pb2.Capabilities
) -> cluster_pb2.Member:
    return cluster_pb2.Member(
        id=executor.id,
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        incarnation=INCARNATION,
        address=executor.address,
        state=types.LIFECYCLE_STATE_READY,
        deployment="demo",
        capabilities=capabilities,
    )


def make_config(**settings: Any) -> JobExecutorConfig:
    nowhere = {
        "nats_url": f"nats://{NOWHERE}",
        "cluster_manager_address": NOWHERE,
        "kv_store_address": NOWHERE,
    }
    return JobExecutorConfig.model_validate({"cluster_token": TOKEN, **nowhere, **settings})


@contextlib.asynccontextmanager
async def job_executor(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    server = JobExecutorServer(make_config(**settings))
    try:
        await server.start()
        yield Rig(server, folder)
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), tokenizer, chat_template=TEMPLATE)


@pytest.fixture
async def rig(folder: Path) -> AsyncIterator[Rig]:
    async with job_executor(folder) as rig:
        yield rig


@pytest.fixture
async def executor(rig: Rig) -> AsyncIterator[FakeTaskExecutor]:
    executor = FakeTaskExecutor("te-1")
    await executor.start()
    await rig.show(executor)
    yield executor
    await executor.stop()


@pytest.fixture
async def gateway(rig: Rig, executor: FakeTaskExecutor) -> AsyncIterator[Gateway]:
    gateway = await rig.gateway()
    yield gateway
    await gateway.close()
