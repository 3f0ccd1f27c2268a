"""GET /v1/requests/{x-request-id}: what became of a request, as its job executor saw it."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from deepflow.errors import DeepFlowError, NotFound, Unavailable
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.catalog import RETRY_AFTER_SECONDS
from services.gateway.config import GatewayConfig
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange
from services.gateway.links.links import Links

PREFIX = "/v1/requests/"


class Requests:
    """Keeps nothing itself, so that every gateway can tell of every other one's requests."""

    def __init__(self, config: GatewayConfig, links: Links) -> None:
        self._config = config
        self._links = links
        self._num_asked = 0

    async def one(self, exchange: Exchange) -> None:
        request = jobs.DescribeRequestRequest(
            request_id=name_in(exchange, PREFIX), tenant=tenant_of(exchange)
        )
        with self._place():
            stories = await self._ask_all(request)
        if not stories:
            raise NotFound(
                f"nothing is known of the request {request.request_id[:128]!r}: it is named by the"
                " x-request-id of an answer, and is forgotten a while after its end",
                reason="request_not_found",
            )
        # A client may use an id again, and another job executor had the former request.
        newest = max(stories, key=lambda story: story.received_unix_ms)
        await exchange.respond_json(document(newest))

    async def _ask_all(self, request: jobs.DescribeRequestRequest) -> list[jobs.RequestStory]:
        """Raises Unavailable where nobody knows it and somebody could not be asked."""
        seconds = self._config.story_seconds_max
        links = self._links.up
        answers = await asyncio.gather(
            *(link.describe(request, seconds) for link in links), return_exceptions=True
        )
        stories = [it.story for it in answers if isinstance(it, jobs.DescribeRequestResponse)]
        errors = [it for it in answers if isinstance(it, BaseException)]
        for error in errors:
            if not isinstance(error, DeepFlowError):
                raise error
        is_certain = links and all(isinstance(error, NotFound) for error in errors)
        if not stories and not is_certain:
            raise _unavailable("a job executor could not be asked", "no_job_executor")
        return stories

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A few at a time: each asks every job executor."""
        if self._num_asked >= self._config.stories_asked_max:
            raise _unavailable("too many requests are being looked up", "overloaded")
        self._num_asked += 1
        try:
            yield
        finally:
            self._num_asked -= 1


def tenant_of(exchange: Exchange) -> str:
    """Whose requests the caller may see: those of the tenant that its own are made for."""
    return exchange.caller.tenant.name


def document(story: jobs.RequestStory) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": story.request_id,
        "object": "request",
        "model": story.model,
        "kind": story.kind,
        "received_unix_ms": story.received_unix_ms,
        "outcome": story.outcome,
        "error": _error(story),
        "route": {
            "gateway": story.gateway_id,
            "job_executor": story.job_executor_id,
            "job": story.job_id,
        },
        "admitted_ms": _optional(story, "admitted_milliseconds"),
        "total_ms": _optional(story, "total_milliseconds"),
        "prompt_tokens": story.prompt_tokens,
    }
    if story.inputs:
        return told | {"inputs": story.inputs}
    return told | {"choices": [_choice(choice) for choice in story.choices]}


def _choice(choice: jobs.ChoiceStory) -> dict[str, Any]:
    return {
        "index": choice.index,
        "task_executor": choice.task_executor_id or None,
        "placements": choice.placements,
        "waited_ms": _optional(choice, "waited_milliseconds"),
        "queued_ms": _optional(choice, "queued_milliseconds"),
        "prefill_ms": _optional(choice, "prefill_milliseconds"),
        "first_token_ms": _optional(choice, "first_token_milliseconds"),
        "finished_ms": _optional(choice, "finished_milliseconds"),
        "prompt_tokens": choice.prompt_tokens,
        "cached_tokens": choice.cached_tokens,
        "completion_tokens": choice.completion_tokens,
        "tokens_per_second": _rate(choice),
        "finish_reason": _reason(choice),
        "error": _error(choice),
    }


def _rate(choice: jobs.ChoiceStory) -> float | None:
    """From its first token to its end; None where that says nothing."""
    seconds = (choice.finished_milliseconds - choice.first_token_milliseconds) / 1000
    if not choice.HasField("first_token_milliseconds") or seconds <= 0:
        return None
    return (
        round((choice.completion_tokens - 1) / seconds, 1) if choice.completion_tokens > 1 else None
    )


def _reason(choice: jobs.ChoiceStory) -> str | None:
    if choice.finish_reason == types.FINISH_REASON_UNSPECIFIED:
        return None
    return types.FinishReason.Name(choice.finish_reason).removeprefix("FINISH_REASON_").lower()


def _error(told: jobs.RequestStory | jobs.ChoiceStory) -> dict[str, str] | None:
    if not told.HasField("error"):
        return None
    return {"code": told.error.reason, "message": told.error.message}


def _optional(message: Any, name: str) -> float | None:
    return round(getattr(message, name), 2) if message.HasField(name) else None


def _unavailable(message: str, reason: str) -> Unavailable:
    return Unavailable(
        f"{message}; try again in a moment", reason=reason, retry_after_seconds=RETRY_AFTER_SECONDS
    )
