"""A real gateway beside a job executor that follows a script, over real gRPC and real HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import httpx

from deepflow import errors, rpc
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from deepflow.v1.jobs_pb2_grpc import (
    JobExecutorServiceServicer,
    add_JobExecutorServiceServicer_to_server,
)
from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer
from tests.servers import until

TOKEN = "a token for tests"
MODEL = "demo"
VOCAB_SIZE = 100
WORDS = ("Hello", ", ", "wörld", "", ' "quoted"\n')
DEADLINE_SECONDS = 10.0

Script = Callable[["FakeJob"], Awaitable[None]]


class FakeJob:
    """One submitted job, with the words a script needs."""

    def __init__(self, submit: jobs.SubmitJob, executor: "FakeJobExecutor") -> None:
        self.submit = submit
        self.handle = submit.handle
        self.job = submit.job
        self.cancelled = asyncio.Event()
        self.credits: asyncio.Queue[jobs.JobCredit] = asyncio.Queue()
        self._executor = executor
        self.credited = 0
        self._sent: dict[int, int] = {}

    @property
    def choices(self) -> int:
        return self.job.n * (len(self.job.completion.prompts) or 1)

    @property
    def sent_tokens(self) -> int:
        return sum(self._sent.values())

    def admit(self) -> None:
        admitted = jobs.JobAdmitted(handle=self.handle, job_executor_id=self._executor.member.id)
        self._executor.send(jobs.JobsResponse(admitted=admitted))

    def refuse(self, error: errors.DeepFlowError) -> None:
        refused = jobs.JobRefused(handle=self.handle, error=errors.to_proto(error))
        self._executor.send(jobs.JobsResponse(refused=refused))

    def tokens(self, *texts: str, choice: int = 0) -> None:
        first = self._sent.get(choice, 0)
        self._sent[choice] = first + len(texts)
        batch = jobs.JobTokenBatch(
            handles=[self.handle],
            choice_indexes=[choice],
            first_token_indexes=[first],
            token_counts=[len(texts)],
            token_ids=[10 + first + i for i in range(len(texts))],
            texts=texts,
        )
        self._executor.send(jobs.JobsResponse(tokens=batch))

    def finish(
        self,
        choice: int = 0,
        reason: types.FinishReason.ValueType = types.FINISH_REASON_STOP,
        tail: str = "",
        error: types.Error | None = None,
    ) -> None:
        usage = types.Usage(
            prompt_tokens=7, completion_tokens=self._sent.get(choice, 0), cached_tokens=4
        )
        finished = jobs.ChoiceFinished(
            handle=self.handle,
            choice_index=choice,
            reason=reason,
            text_tail=tail,
            usage=usage,
            error=error,
        )
        self._executor.send(jobs.JobsResponse(tokens=jobs.JobTokenBatch(finished=[finished])))


async def say_hello(job: FakeJob) -> None:
    """The usual script: every choice says WORDS, one token a message, and stops."""
    job.admit()
    for word in WORDS:
        for choice in range(job.choices):
            job.tokens(word, choice=choice)
    for choice in range(job.choices):
        job.finish(choice)


class FakeJobExecutor(JobExecutorServiceServicer):
    """Speaks the real contract; what it answers to a job is `script`."""

    def __init__(self, name: str = "je-1") -> None:
        self.script: Script = say_hello
        self.jobs: asyncio.Queue[FakeJob] = asyncio.Queue()
        self.streams_open = 0
        self.member = cluster.Member(
            id=name,
            kind=types.MEMBER_KIND_JOB_EXECUTOR,
            incarnation=1,
            state=types.LIFECYCLE_STATE_READY,
        )
        self._outbox: asyncio.Queue[jobs.JobsResponse] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._by_handle: dict[int, FakeJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        self._server = rpc.new_server(TOKEN)
        add_JobExecutorServiceServicer_to_server(self, self._server)
        port = await rpc.listen(self._server, "127.0.0.1", port)
        self.member.address = f"127.0.0.1:{port}"

    async def die(self) -> None:
        """All streams break at once, as after a SIGKILL."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(None)

    def send(self, response: jobs.JobsResponse) -> None:
        self._outbox.put_nowait(response)

    async def Jobs(
        self, request_iterator: AsyncIterator[jobs.JobsRequest], context: Any
    ) -> AsyncIterator[jobs.JobsResponse]:
        hello = await anext(aiter(request_iterator))
        assert hello.hello.gateway_id
        welcome = jobs.JobsWelcome(job_executor_id=self.member.id, incarnation=1)
        yield jobs.JobsResponse(welcome=welcome)
        self._outbox = asyncio.Queue()
        self._spawn(self._listen(request_iterator))
        self.streams_open += 1
        try:
            while True:
                yield await self._outbox.get()
        finally:
            self.streams_open -= 1

    async def _listen(self, requests: AsyncIterator[jobs.JobsRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("kind"):
                case "submit":
                    job = self._by_handle[request.submit.handle] = FakeJob(request.submit, self)
                    self.jobs.put_nowait(job)
                    self._spawn(self.script(job))
                case "cancel":
                    self._by_handle[request.cancel.handle].cancelled.set()
                case "credit":
                    self._by_handle[request.credit.handle].credits.put_nowait(request.credit)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class GatewayStand:
    """One gateway and its job executors; the view is given to it by hand."""

    def __init__(self, gateway: GatewayServer, *executors: FakeJobExecutor) -> None:
        self.gateway = gateway
        self.executors = list(executors)
        self.version = 0

    @property
    def executor(self) -> FakeJobExecutor:
        return self.executors[0]

    @property
    def url(self) -> str:
        return f"http://{self.gateway.address}"

    def view(self, *, served: bool = True) -> cluster.ClusterView:
        self.version += 1
        members = [executor.member for executor in self.executors]
        if served:
            members.append(
                cluster.Member(
                    id="te-1",
                    kind=types.MEMBER_KIND_TASK_EXECUTOR,
                    state=types.LIFECYCLE_STATE_READY,
                    deployment=MODEL,
                )
            )
        facts = cluster.ModelFacts(vocab_size=VOCAB_SIZE, has_chat_template=True)
        deployment = cluster.Deployment(name=MODEL, facts=facts, created_unix_ms=1_700_000_000_000)
        return cluster.ClusterView(
            term=1, version=self.version, members=members, deployments=[deployment]
        )

    async def show(self, *, served: bool = True, links: int | None = None) -> None:
        """Give the gateway a view and wait until its links are up."""
        self.gateway.adopt(self.view(served=served))
        await self.until_links(len(self.executors) if links is None else links)

    async def until_links(self, count: int) -> None:
        await until(lambda: self.gateway.links.up_count == count, what=f"{count} links")


@contextlib.asynccontextmanager
async def gateway_stand(
    *executors: FakeJobExecutor, shown: bool = True, **settings: Any
) -> AsyncIterator[GatewayStand]:
    settings = {"port": 0, "nats_url": "nats://127.0.0.1:1", **settings}
    config = GatewayConfig(
        cluster_token=TOKEN,
        kv_store_address="127.0.0.1:1",
        cluster_manager_address="127.0.0.1:1",
        **settings,
    )
    gateway = GatewayServer(config)
    stand = GatewayStand(gateway, *executors)
    try:
        for executor in executors:
            await executor.start()
        await gateway.start()
        if shown:
            await stand.show()
        yield stand
    finally:
        await gateway.stop()
        for executor in executors:
            await executor.die()


def client(stand: GatewayStand) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=stand.url, timeout=DEADLINE_SECONDS)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}
