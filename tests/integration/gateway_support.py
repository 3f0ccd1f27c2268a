"""A real gateway beside a job executor that follows a script, over real gRPC and real HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
import httpx
import openai

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
DEADLINE_SECONDS = 30.0  # of what takes milliseconds

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

    def queue(self) -> None:
        self._executor.send(jobs.JobsResponse(queued=jobs.JobQueued(handle=self.handle)))

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
        if self.job.sampling.HasField("logprobs"):
            batch.logprobs.extend(_logprob(first + i) for i in range(len(texts)))
            batch.details.append(_details(texts, first, self.job.sampling.logprobs))
        self._executor.send(jobs.JobsResponse(tokens=batch))

    def prompt(self, *tokens: str, choice: int = 0, mark: str = "") -> None:
        """The prompt of one choice; `mark` is a token of its own that the text does not show."""
        shown = [mark, *tokens] if mark else list(tokens)
        prompt = jobs.ChoicePrompt(
            handle=self.handle,
            choice_index=choice,
            text="".join(tokens),
            token_ids=[50 + i for i in range(len(shown))],
            token_bytes=[token.encode() for token in shown],
        )
        if self.job.sampling.HasField("prompt_logprobs"):
            count = self.job.sampling.prompt_logprobs
            scored = range(1, len(shown))
            prompt.logprobs.extend(_logprob(i) for i in scored)
            prompt.ranks.extend(count + 1 for _ in scored)
            details = _details(shown[1:], 1, count)
            prompt.top_counts.extend(details.top_counts)
            prompt.top_token_ids.extend(details.top_token_ids)
            prompt.top_token_bytes.extend(details.top_token_bytes)
            prompt.top_logprobs.extend(details.top_logprobs)
        self._executor.send(jobs.JobsResponse(tokens=jobs.JobTokenBatch(prompts=[prompt])))

    def tool_call(
        self, index: int, name: str = "", *arguments: str, choice: int = 0, call_id: str = ""
    ) -> None:
        """One call, or more of its arguments, a message each."""
        deltas = [
            jobs.ToolCallDelta(
                handle=self.handle,
                choice_index=choice,
                call_index=index,
                id=call_id if i == 0 else "",
                name=name if i == 0 else "",
                arguments=piece,
            )
            for i, piece in enumerate(arguments or ("",))
        ]
        for delta in deltas:
            batch = jobs.JobTokenBatch(tool_calls=[delta])
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


def _logprob(position: int) -> float:
    """A number that fp32 holds exactly, another one for every position."""
    return -0.25 * (position + 1)


def _details(texts: Sequence[str], first: int, count: int) -> jobs.TokenDetails:
    """`count` alternatives a token, none of which is the token."""
    details = jobs.TokenDetails(token_bytes=[text.encode() for text in texts])
    for i in range(len(texts)):
        details.top_counts.append(count)
        details.top_token_ids.extend(80 + k for k in range(count))
        details.top_token_bytes.extend(f"alt{k}".encode() for k in range(count))
        details.top_logprobs.extend(_logprob(first + i) + 0.125 * (count - k) for k in range(count))
    return details


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
        self.tokenize_requests: list[jobs.TokenizeRequest] = []
        self.tokenize_error: errors.DeepFlowError | None = None
        # Tokenize answers while it is set.
        self.tokenizes = asyncio.Event()
        self.tokenizes.set()
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

    async def Tokenize(self, request: jobs.TokenizeRequest, context: Any) -> jobs.TokenizeResponse:
        """One token a character of the text, or of the last message."""
        self.tokenize_requests.append(request)
        await self.tokenizes.wait()
        if self.tokenize_error is not None:
            raise self.tokenize_error
        is_text = request.WhichOneof("input") == "text"
        text = request.text if is_text else request.chat.messages[-1].content
        return jobs.TokenizeResponse(
            token_ids=[ord(character) for character in text], tokens=list(text), max_tokens=4096
        )

    async def Detokenize(
        self, request: jobs.DetokenizeRequest, context: Any
    ) -> jobs.DetokenizeResponse:
        return jobs.DetokenizeResponse(text="".join(map(chr, request.token_ids)))

    async def DescribeRequest(
        self, request: jobs.DescribeRequestRequest, context: Any
    ) -> jobs.DescribeRequestResponse:
        raise errors.NotFound("this script keeps no stories", reason="request_not_found")

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

    @property
    def port(self) -> int:
        return int(self.gateway.address.rpartition(":")[2])

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
    settings = {
        "port": 0,
        "nats_url": "nats://127.0.0.1:1",
        "access": "open",
        "kv_store_address": "127.0.0.1:1",
        "story_seconds_max": DEADLINE_SECONDS,
        **settings,
    }
    config = GatewayConfig(
        cluster_token=TOKEN,
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


def openai_client(stand: GatewayStand) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{stand.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS
    )


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}
