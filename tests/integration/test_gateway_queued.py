"""A job that waits for its tenant's turn, as its client's gateway sees it."""

import asyncio

from deepflow.errors import RateLimited
from tests.integration.gateway_support import (
    FakeJob,
    FakeJobExecutor,
    chat,
    client,
    gateway_stand,
    say_hello,
)
from tests.servers import until

CHAT = "/v1/chat/completions"


async def test_a_job_that_was_queued_is_answered_when_it_is_its_turn() -> None:
    turn = asyncio.Event()

    async def wait(job: FakeJob) -> None:
        job.queue()
        await turn.wait()
        await say_hello(job)

    executor = FakeJobExecutor()
    executor.script = wait
    async with gateway_stand(executor) as stand, client(stand) as http:
        asked = asyncio.create_task(http.post(CHAT, json=chat()))
        links = stand.gateway.links
        await until(
            lambda: any(run.is_queued for link in links.up for run in link.runs.values()),
            what="word that the job is queued",
        )
        turn.set()
        assert (await asked).status_code == 200


async def test_a_full_share_is_429_with_the_time_to_come_back() -> None:
    full = RateLimited("too many", reason="tenant_queue_full", retry_after_seconds=7.0)

    async def refuse(job: FakeJob) -> None:
        job.refuse(full)

    executor = FakeJobExecutor()
    executor.script = refuse
    async with gateway_stand(executor) as stand, client(stand) as http:
        answer = await http.post(CHAT, json=chat(stream=True))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert answer.json()["error"]["code"] == "tenant_queue_full"
