"""GET /v1/requests/{id}: a gateway asks every job executor and words what one of them tells."""

import asyncio
from typing import Any

import httpx
import pytest

from deepflow.errors import NotFound, Unavailable, to_proto
from deepflow.v1 import access_pb2
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.auth.caller import Caller
from services.gateway.config import GatewayConfig
from services.gateway.handlers.requests import Requests
from services.gateway.http.exchange import Exchange
from services.gateway.jobs import TENANT
from tests.integration.gateway_support import FakeJobExecutor, client, gateway_stand
from tests.servers import until


class Teller(FakeJobExecutor):
    """Knows the stories that a test gives it, of one tenant."""

    def __init__(self, name: str, *stories: jobs.RequestStory) -> None:
        super().__init__(name)
        self.stories = {story.request_id: story for story in stories}
        self.is_ill = False
        self.num_asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def DescribeRequest(
        self, request: jobs.DescribeRequestRequest, context: Any
    ) -> jobs.DescribeRequestResponse:
        self.num_asked += 1
        await self.answers.wait()
        if self.is_ill:
            raise Unavailable("not now")
        if request.tenant != TENANT or request.request_id not in self.stories:
            raise NotFound("no", reason="request_not_found")
        return jobs.DescribeRequestResponse(story=self.stories[request.request_id])


def story(request_id: str, received: int, **more: Any) -> jobs.RequestStory:
    return jobs.RequestStory(
        request_id=request_id,
        job_id="job-1",
        model="demo",
        kind="chat",
        gateway_id="gw-9",
        job_executor_id="je-1",
        received_unix_ms=received,
        **more,
    )


ENDED = story(
    "req-a",
    1000,
    admitted_milliseconds=2.0,
    total_milliseconds=1002.0,
    outcome="ok",
    prompt_tokens=12,
    choices=[
        jobs.ChoiceStory(
            task_executor_id="te-0",
            placements=1,
            queued_milliseconds=0.5,
            prefill_milliseconds=1.5,
            first_token_milliseconds=2.0,
            finished_milliseconds=1002.0,
            prompt_tokens=12,
            cached_tokens=8,
            completion_tokens=101,
            finish_reason=types.FINISH_REASON_LENGTH,
        )
    ],
)


async def get(http: httpx.AsyncClient, request_id: str) -> tuple[int, dict[str, Any]]:
    response = await http.get(f"/v1/requests/{request_id}")
    document: dict[str, Any] = response.json()
    return response.status_code, document


async def test_a_story_is_told_whoever_had_the_request() -> None:
    async with gateway_stand(Teller("je-1"), Teller("je-2", ENDED)) as stand, client(stand) as http:
        status, told = await get(http, "req-a")
        assert status == 200
        assert told["route"] == {"gateway": "gw-9", "job_executor": "je-1", "job": "job-1"}
        assert (told["outcome"], told["error"], told["total_ms"]) == ("ok", None, 1002.0)
        (choice,) = told["choices"]
        assert choice["task_executor"] == "te-0"
        assert (choice["queued_ms"], choice["prefill_ms"], choice["first_token_ms"]) == (
            0.5,
            1.5,
            2,
        )
        assert (choice["cached_tokens"], choice["finish_reason"]) == (8, "length")
        assert choice["tokens_per_second"] == 100.0
        status, told = await get(http, "req-b")
        assert (status, told["error"]["code"]) == (404, "request_not_found")


async def test_the_newest_of_two_requests_with_one_id_is_told() -> None:
    one, two = Teller("je-1", story("req-a", 2000)), Teller("je-2", story("req-a", 1000))
    async with gateway_stand(one, two) as stand, client(stand) as http:
        _, told = await get(http, "req-a")
        assert told["received_unix_ms"] == 2000


async def test_nothing_is_called_unknown_while_somebody_could_not_be_asked() -> None:
    ill = Teller("je-2", ENDED)
    ill.is_ill = True
    async with gateway_stand(Teller("je-1"), ill) as stand, client(stand) as http:
        status, told = await get(http, "req-a")
        assert (status, told["error"]["code"]) == (503, "no_job_executor")


async def test_a_failed_request_and_a_running_one() -> None:
    error = to_proto(Unavailable("no room", reason="job_executor_full"))
    failed = story("req-f", 1, outcome="job_executor_full", error=error, total_milliseconds=3.0)
    running = story("req-r", 1, outcome="running", choices=[jobs.ChoiceStory(placements=1)])
    async with gateway_stand(Teller("je-1", failed, running)) as stand, client(stand) as http:
        _, told = await get(http, "req-f")
        assert told["error"] == {"code": "job_executor_full", "message": "no room"}
        _, told = await get(http, "req-r")
        assert (told["total_ms"], told["choices"][0]["first_token_ms"]) == (None, None)
        assert told["choices"][0]["tokens_per_second"] is None


async def test_embeddings_tell_of_their_inputs() -> None:
    made = story("req-e", 1, outcome="ok", inputs=7, prompt_tokens=70)
    made.kind = "embedding"
    async with gateway_stand(Teller("je-1", made)) as stand, client(stand) as http:
        _, told = await get(http, "req-e")
        assert (told["inputs"], told["prompt_tokens"]) == (7, 70) and "choices" not in told


def as_tenant(name: str) -> Exchange:
    async def nothing(*_: Any) -> dict[str, Any]:
        return {}

    scope = {"method": "GET", "path": "/v1/requests/req-a", "query_string": b"", "headers": []}
    exchange = Exchange(scope, nothing, nothing)  # type: ignore[arg-type]
    exchange.caller = Caller("key", tenant=access_pb2.Tenant(name=name))
    return exchange


async def test_another_tenant_finds_nothing() -> None:
    async with gateway_stand(Teller("je-1", ENDED)) as stand:
        requests = Requests(GatewayConfig(), stand.gateway.links)
        mine, other = as_tenant(TENANT), as_tenant("other")
        await requests.one(mine)
        assert mine.status == 200
        with pytest.raises(NotFound):
            await requests.one(other)


async def test_only_a_few_are_looked_up_at_one_time() -> None:
    slow = Teller("je-1", ENDED)
    slow.answers.clear()
    async with gateway_stand(slow, stories_asked_max=1) as stand, client(stand) as http:
        first = asyncio.create_task(get(http, "req-a"))
        await until(lambda: slow.num_asked == 1, what="the first question")
        status, told = await get(http, "req-a")
        assert (status, told["error"]["code"]) == (503, "overloaded")
        slow.answers.set()
        assert (await first)[0] == 200
        assert (await get(http, "req-a"))[0] == 200
