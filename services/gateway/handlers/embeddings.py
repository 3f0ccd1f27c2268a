"""POST /v1/embeddings: one request, one job, a vector for each input."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from deepflow import clock
from deepflow.errors import DeadlineExceeded, Internal, Unavailable
from deepflow.telemetry import Span, Tracing
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway import metrics
from services.gateway.catalog import RETRY_AFTER_SECONDS, Catalog
from services.gateway.config import GatewayConfig
from services.gateway.doors import Doors
from services.gateway.handlers.under_way import UnderWay
from services.gateway.http.exchange import Exchange
from services.gateway.jobs import make_embedding_job
from services.gateway.limits.estimate import prompts_estimate
from services.gateway.links.links import Links
from services.gateway.links.run import JobRun
from services.gateway.schema.body import parse_object
from services.gateway.schema.embedding import EmbeddingRequest, read_embedding
from services.gateway.streaming.vectors import VectorList


class Embeddings:
    def __init__(
        self,
        config: GatewayConfig,
        links: Links,
        catalog: Callable[[], Catalog],
        tracing: Tracing,
        doors: Doors,
        under_way: UnderWay,
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._links = links
        self._catalog = catalog
        self._tracing = tracing
        self._doors = doors
        self._under_way = under_way
        self._num_inputs = 0

    async def create(self, exchange: Exchange) -> None:
        arrived = clock.monotonic()
        with self._under_way.one(exchange.caller.tenant.name):
            request = await self._read(exchange)
            estimate = prompts_estimate(request.prompts)
            async with self._doors.work(exchange, request.model, estimate) as bill:
                bill.prompt_tokens = await self._answer(exchange, request, arrived)

    async def _answer(self, exchange: Exchange, request: EmbeddingRequest, arrived: float) -> int:
        """How many tokens it took."""
        with (
            self._room_for(len(request.prompts)),
            self._tracing.span("gateway.request", exchange.trace(), path=exchange.path) as span,
        ):
            answer = await self._run(exchange, request, span)
            exchange.notes["prompt_tokens"] = answer.prompt_tokens
            metrics.count_tokens(request.model, answer.prompt_tokens, 0, 0)
            metrics.time_answer(
                request.model,
                arrived=arrived,
                first_token=0.0,
                ended=clock.monotonic(),
                tokens=0,
            )
            await exchange.respond(200, answer.document(request.model))
            return answer.prompt_tokens

    async def _read(self, exchange: Exchange) -> EmbeddingRequest:
        body = await exchange.read_json_bytes(self._config.body_bytes_max)
        request = read_embedding(parse_object(body, self._config.json_depth_max), self._limits)
        exchange.caller.require_model(request.model)
        catalog = self._catalog()
        catalog.require_task(request.model, cluster.MODEL_TASK_EMBED)
        catalog.require_served(request.model)
        exchange.notes |= {"model": request.model, "inputs": len(request.prompts)}
        if request.user:
            exchange.notes["user"] = request.user
        return request

    async def _run(self, exchange: Exchange, request: EmbeddingRequest, span: Span) -> VectorList:
        seconds = self._config.job_seconds_max
        job = make_embedding_job(
            request,
            request_id=exchange.request_id,
            trace=span.context,
            seconds_max=seconds,
            tenant=exchange.caller.tenant.name,
            tenant_weight=exchange.caller.tenant.weight,
        )
        span.set(job=job.id, model=request.model)
        exchange.notes |= {"job": job.id, "trace": span.trace_id}
        link = await self._links.least_loaded()
        run = link.submit(job, len(request.prompts), _NoText(), self._config.token_window)
        leaving = asyncio.create_task(_leave_with_client(exchange, run))
        try:
            async with asyncio.timeout(seconds):
                await self._admit(run)
                return await _collect(run, request)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the answer was not complete after {seconds:g} s") from error
        finally:
            leaving.cancel()
            link.release(run)
            if run.failure is not None:
                span.fail(run.failure.reason)

    async def _admit(self, run: JobRun) -> None:
        try:
            await run.admission(self._config.admission_seconds_max)
        except TimeoutError as error:
            raise _unavailable("no place was found in time; try again", "not_admitted") from error

    @contextlib.contextmanager
    def _room_for(self, num_inputs: int) -> Iterator[None]:
        """Answers are put together here: what they hold at one time has a bound."""
        if self._num_inputs and self._num_inputs + num_inputs > self._config.vectors_max:
            raise _unavailable("too many inputs are being embedded; try again", "overloaded")
        self._num_inputs += num_inputs
        try:
            yield
        finally:
            self._num_inputs -= num_inputs


class _NoText:
    """The answer's text: there is none. What a job executor sends of it is thrown away."""

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None: ...

    def details(
        self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]
    ) -> None: ...

    def prompt(self, prompt: jobs.ChoicePrompt) -> None: ...

    def tool_call(self, delta: jobs.ToolCallDelta) -> None: ...

    def finished(self, choice: jobs.ChoiceFinished) -> None: ...

    def flush(self) -> bool:
        return True


async def _collect(run: JobRun, request: EmbeddingRequest) -> VectorList:
    """Word each vector while the next ones are on their way."""
    answer = VectorList(len(request.prompts), as_base64=request.as_base64)
    while True:
        vectors, run.vectors = run.vectors, []
        for embedding in vectors:
            answer.add(embedding)
        if run.is_over:
            break
        await run.arrival()
    if run.failure is not None:
        raise run.failure
    if not answer.is_complete:
        raise Internal("an input ended without its vector", reason="broken_stream")
    return answer


async def _leave_with_client(exchange: Exchange, run: JobRun) -> None:
    await exchange.disconnection()
    run.leave()


def _unavailable(message: str, reason: str) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after_seconds=RETRY_AFTER_SECONDS)
