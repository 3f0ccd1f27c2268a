"""POST /v1/chat/completions and /v1/completions: one request, one job, one answer."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from deepflow import clock, ids
from deepflow.errors import Cancelled, DeadlineExceeded, Unavailable
from deepflow.telemetry import Span, Tracing
from deepflow.v1 import cluster_pb2 as cluster
from services.gateway import metrics
from services.gateway.catalog import RETRY_AFTER_SECONDS, Catalog
from services.gateway.config import GatewayConfig
from services.gateway.doors import Bill, Doors
from services.gateway.handlers.under_way import UnderWay
from services.gateway.http.exchange import Exchange
from services.gateway.jobs import make_job
from services.gateway.limits.estimate import prompt_estimate
from services.gateway.links.links import Links
from services.gateway.links.run import Answer, JobRun
from services.gateway.schema.body import parse_object
from services.gateway.schema.limits import Limits
from services.gateway.schema.request import GenerationRequest, read_chat, read_completion
from services.gateway.streaming.detailed import DetailedLiveAnswer, DetailedWholeAnswer
from services.gateway.streaming.events import EventFormat
from services.gateway.streaming.live import LiveAnswer
from services.gateway.streaming.usage import UsageSum
from services.gateway.streaming.wanted import Wanted
from services.gateway.streaming.whole import WholeAnswer

# After the deadline, for telling the client so.
LAST_WORD_SECONDS = 5.0

Read = Callable[[dict[str, Any], Limits], GenerationRequest]


class Generation:
    """Both generating routes; they differ in how they read a body and word an answer."""

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

    async def chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, read_chat)

    async def completion(self, exchange: Exchange) -> None:
        await self._generate(exchange, read_completion)

    async def _generate(self, exchange: Exchange, read: Read) -> None:
        arrived = clock.monotonic()
        with self._under_way.one(exchange.caller.tenant.name):
            request = await self._read(exchange, read)
            path = exchange.path
            async with self._doors.work(
                exchange, request.model, prompt_estimate(request.work)
            ) as bill:
                with self._tracing.span("gateway.request", exchange.trace(), path=path) as span:
                    await self._run(exchange, request, span, arrived, bill)

    async def _read(self, exchange: Exchange, read: Read) -> GenerationRequest:
        body = await exchange.read_json_bytes(self._config.body_bytes_max)
        request = read(parse_object(body, self._config.json_depth_max), self._limits)
        exchange.caller.require_model(request.model)
        self._require_model(request)
        exchange.notes |= {"model": request.model, "stream": request.stream}
        if request.user:
            exchange.notes["user"] = request.user
        return request

    def _require_model(self, request: GenerationRequest) -> None:
        catalog = self._catalog()
        catalog.require_task(request.model, cluster.MODEL_TASK_GENERATE)
        deployment = catalog.deployment(request.model)
        if vocab_size := deployment.facts.vocab_size:
            request.check_ids(vocab_size)
        catalog.require_served(request.model)

    async def _run(
        self,
        exchange: Exchange,
        request: GenerationRequest,
        span: Span,
        arrived: float,
        bill: Bill,
    ) -> None:
        job = make_job(
            request,
            request_id=exchange.request_id,
            trace=span.context,
            seconds_max=self._config.job_seconds_max,
            tenant=exchange.caller.tenant.name,
            tenant_weight=exchange.caller.tenant.weight,
        )
        span.set(job=job.id, model=request.model)
        exchange.notes |= {"job": job.id, "trace": span.trace_id}
        reply = _Reply(exchange, request, arrived)
        link = await self._links.least_loaded()
        run = link.submit(job, request.choices, reply.answer, self._config.token_window)
        seconds = self._config.job_seconds_max
        deadline = asyncio.get_running_loop().call_later(seconds, run.fail, _too_late(seconds))
        leaving = asyncio.create_task(_leave_with_client(exchange, run))
        try:
            # The deadline ends a job; only a client that reads nothing lasts longer.
            async with asyncio.timeout(seconds + LAST_WORD_SECONDS):
                await self._admit(run)
                await reply.send(run)
        except TimeoutError as error:
            raise _too_late(seconds) from error
        finally:
            deadline.cancel()
            leaving.cancel()
            link.release(run)
            reply.close(run, span)
            reply.charge(run, bill)

    async def _admit(self, run: JobRun) -> None:
        try:
            await run.admission(self._config.admission_seconds_max)
        except TimeoutError as error:
            raise _unavailable("no place was found in time; try again", "not_admitted") from error


class _Reply:
    """Sends one admitted job's answer, streamed or whole."""

    def __init__(self, exchange: Exchange, request: GenerationRequest, arrived: float) -> None:
        self._exchange = exchange
        self._request = request
        self._arrived = arrived
        self._id = ids.new_id("chatcmpl" if request.is_chat else "cmpl")
        self._created = int(time.time())
        self._usage = UsageSum(request.n)
        wanted = wanted_of(request)
        self._live: LiveAnswer | None = None
        if request.stream:
            self._live = self._live_answer(wanted)
        else:
            kind = DetailedWholeAnswer if wanted.is_detailed else WholeAnswer
            self._whole = kind(request.choices, self._usage, wanted)

    @property
    def answer(self) -> Answer:
        return self._live or self._whole

    async def send(self, run: JobRun) -> None:
        if self._live is not None:
            await self._send_live(run, self._live)
        else:
            await self._send_whole(run, self._whole)

    def close(self, run: JobRun, span: Span) -> None:
        """Record how it went."""
        notes, usage = self._exchange.notes, self._usage
        notes["tokens"] = usage.completion_tokens
        model = self._request.model
        metrics.count_tokens(
            model, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
        )
        metrics.time_answer(
            model,
            arrived=self._arrived,
            first_token=run.first_token_at,
            ended=clock.monotonic(),
            tokens=usage.completion_tokens / self._request.choices,
        )
        span.set(tokens=self._usage.completion_tokens)
        if error := notes.get("error"):
            span.fail(error)
        if run.first_token_at:
            notes["first_token_ms"] = round((run.first_token_at - self._arrived) * 1000, 2)
            span.event("first_token", after_ms=notes["first_token_ms"])

    def charge(self, run: JobRun, bill: Bill) -> None:
        """What it cost. Of an answer that broke off only that is known which had arrived."""
        usage = self._usage
        bill.prompt_tokens, bill.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        bill.completion_tokens = max(usage.completion_tokens, run.token_count)
        if run.token_count and not usage.prompt_tokens:
            bill.prompt_tokens = prompt_estimate(self._request.work)

    def _live_answer(self, wanted: Wanted) -> LiveAnswer:
        form, request = self._format(), self._request
        if wanted.is_detailed:
            return DetailedLiveAnswer(
                form,
                self._usage,
                wanted,
                include_usage=request.include_usage,
                choices=request.choices,
            )
        return LiveAnswer(form, self._usage, wanted, include_usage=request.include_usage)

    def _format(self) -> EventFormat:
        return EventFormat(
            is_chat=self._request.is_chat,
            answer_id=self._id,
            created=self._created,
            model=self._request.model,
            choices=self._request.choices,
            include_usage=self._request.include_usage,
        )

    async def _send_live(self, run: JobRun, answer: LiveAnswer) -> None:
        await self._exchange.start_events()
        if self._request.is_chat:
            await self._exchange.send(_piece(answer.roles(self._request.choices)))
        await self._pass_on(run, answer)
        failure = run.failure or answer.failure
        if isinstance(failure, Cancelled):
            raise failure
        if failure is not None:
            self._exchange.notes["error"] = failure.reason
        await self._exchange.send(
            {"type": "http.response.body", "body": answer.ending(failure), "more_body": False}
        )

    async def _pass_on(self, run: JobRun, answer: LiveAnswer) -> None:
        """Let the link push while the client keeps up; wait for the client where it does not."""
        while not run.is_over and answer.failure is None:
            if answer.has_events:
                await self._exchange.send(_piece(answer.take()))
                continue
            run.passed_on()
            answer.push = self._exchange.push
            await run.arrival()

    async def _send_whole(self, run: JobRun, answer: WholeAnswer) -> None:
        while not run.is_over and answer.failure is None:
            await run.arrival()
        if failure := run.failure or answer.failure:
            raise failure
        document = answer.document(self._id, self._created, self._request.model)
        await self._exchange.respond_json(document)


def wanted_of(request: GenerationRequest) -> Wanted:
    return Wanted(
        is_chat=request.is_chat,
        token_ids=request.return_token_ids,
        echo=request.echo,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
    )


def _piece(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _leave_with_client(exchange: Exchange, run: JobRun) -> None:
    await exchange.disconnection()
    run.leave()


def _unavailable(message: str, reason: str) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after_seconds=RETRY_AFTER_SECONDS)


def _too_late(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the answer was not complete after {seconds:g} s")
