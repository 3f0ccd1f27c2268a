"""What breaks behind and before the gateway: members, links, clients, itself."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepflow.errors import Internal, to_proto
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.http.exchange import Exchange
from services.gateway.streaming.whole import WholeAnswer
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    FakeJob,
    FakeJobExecutor,
    GatewayStand,
    chat,
    client,
    gateway_stand,
    say_hello,
)
from tests.servers import listens, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    async with gateway_stand(FakeJobExecutor()) as stand:
        yield stand


@pytest.fixture
async def http(stand: GatewayStand) -> AsyncIterator[httpx.AsyncClient]:
    async with client(stand) as http:
        yield http


async def admit_only(job: FakeJob) -> None:
    job.admit()


async def one_word(job: FakeJob) -> None:
    job.admit()
    job.tokens("word")


def check_unavailable(response: httpx.Response, code: str) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == code


class EventReader:
    """The events of one stream, one at a time."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        async for line in self._lines:
            if line == "data: [DONE]":
                return None
            if line:
                return json.loads(line.removeprefix("data: "))
        raise AssertionError("the stream ended without [DONE]")

    async def text(self) -> str:
        return str((await self.next())["choices"][0]["delta"]["content"])


async def test_without_a_view_503() -> None:
    async with gateway_stand(shown=False) as stand, client(stand) as http:
        assert (await http.get("/ready")).status_code == 200
        check_unavailable(await http.get("/v1/models"), "cluster_unknown")
        check_unavailable(await http.post(CHAT, json=chat()), "cluster_unknown")


async def test_without_a_job_executor_503() -> None:
    async with gateway_stand(link_wait_seconds_max=0.05) as stand, client(stand) as http:
        check_unavailable(await http.post(CHAT, json=chat()), "no_job_executor")


async def test_a_request_waits_for_a_job_executor_that_is_being_replaced() -> None:
    async with (
        gateway_stand(link_wait_seconds_max=DEADLINE_SECONDS) as stand,
        client(stand) as http,
    ):
        asked = asyncio.create_task(http.post(CHAT, json=chat()))
        await until(lambda: stand.gateway.under_way.count == 1, what="the request is in")
        successor = FakeJobExecutor()
        await successor.start()
        try:
            stand.executors = [successor]
            await stand.show()
            assert (await asked).status_code == 200
        finally:
            await successor.die()


async def test_without_a_ready_task_executor_503(
    stand: GatewayStand, http: httpx.AsyncClient
) -> None:
    await stand.show(served=False)
    check_unavailable(await http.post(CHAT, json=chat()), "model_not_ready")
    await stand.show()
    assert (await http.post(CHAT, json=chat())).status_code == 200


async def test_a_job_that_nobody_admits_is_503_and_cancelled() -> None:
    async def ignore(job: FakeJob) -> None:
        pass

    executor = FakeJobExecutor()
    executor.script = ignore
    async with gateway_stand(executor, admission_seconds_max=0.05) as stand, client(stand) as http:
        check_unavailable(await http.post(CHAT, json=chat()), "not_admitted")
        await asyncio.wait_for((await executor.jobs.get()).cancelled.wait(), DEADLINE_SECONDS)


async def test_too_many_jobs_503() -> None:
    executor = FakeJobExecutor()
    executor.script = admit_only
    async with (
        gateway_stand(executor, jobs_max=1) as stand,
        client(stand) as http,
        http.stream("POST", CHAT, json=chat(stream=True)),
    ):
        check_unavailable(await http.post(CHAT, json=chat()), "overloaded")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_executor_that_dies_before_admission_is_503(
    stand: GatewayStand, http: httpx.AsyncClient, stream: bool
) -> None:
    async def die(job: FakeJob) -> None:
        asyncio.get_running_loop().create_task(stand.executor.die())

    stand.executor.script = die
    check_unavailable(await http.post(CHAT, json=chat(stream=stream)), "job_executor_lost")


async def test_a_job_executor_that_dies_mid_stream_and_comes_back(
    stand: GatewayStand, http: httpx.AsyncClient
) -> None:
    usual, stand.executor.script = stand.executor.script, one_word
    async with http.stream("POST", CHAT, json=chat(stream=True)) as response:
        reader = EventReader(response)
        assert (await reader.text(), await reader.text()) == ("", "word")
        await stand.executor.die()
        error = (await asyncio.wait_for(reader.next(), DEADLINE_SECONDS))["error"]
        assert error["code"] == "job_executor_lost"
        assert await reader.next() is None
    await stand.until_links(0)
    stand.executor.script = usual
    await stand.executor.start(int(stand.executor.member.address.rsplit(":", 1)[1]))
    await stand.until_links(1)
    assert (await http.post(CHAT, json=chat())).status_code == 200


async def test_a_choice_that_fails_is_an_error_event_or_status(
    stand: GatewayStand, http: httpx.AsyncClient
) -> None:
    async def fail(job: FakeJob) -> None:
        job.admit()
        job.tokens("word")
        error = to_proto(Internal("the engine broke", reason="engine_error"))
        job.finish(reason=types.FINISH_REASON_ERROR, error=error)

    stand.executor.script = fail
    whole = await http.post(CHAT, json=chat())
    assert whole.status_code == 500 and whole.json()["error"]["code"] == "engine_error"
    streamed = await http.post(CHAT, json=chat(stream=True, n=2))
    assert streamed.status_code == 200 and streamed.text.endswith("data: [DONE]\n\n")
    assert '"code":"engine_error"' in streamed.text
    for _ in range(2):
        job = await stand.executor.jobs.get()
    await asyncio.wait_for(job.cancelled.wait(), DEADLINE_SECONDS)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_job(stand: GatewayStand, stream: bool) -> None:
    stand.executor.script = one_word
    body = json.dumps(chat(stream=stream)).encode()
    _reader, writer = await asyncio.open_connection(*stand.gateway.address.split(":"))
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
        % (CHAT.encode(), len(body), body)
    )
    job = await asyncio.wait_for(stand.executor.jobs.get(), DEADLINE_SECONDS)
    assert not job.cancelled.is_set()
    writer.close()
    await asyncio.wait_for(job.cancelled.wait(), DEADLINE_SECONDS)
    await until(lambda: stand.gateway.application.in_flight == 0, what="no request in flight")


async def test_a_client_that_reads_nothing_delays_nobody_and_stops_its_credit() -> None:
    window, piece = 64, "x" * 50_000
    executor = FakeJobExecutor()

    async def obey_the_window(job: FakeJob) -> None:
        job.admit()
        limit = sent = 0
        while sent < 4000:
            limit = max(limit, window)
            while sent < limit:
                job.tokens(piece)
                sent += 1
            limit = (await job.credits.get()).delivered_tokens + window

    async with gateway_stand(executor, token_window=window) as stand, client(stand) as http:
        usual, executor.script = executor.script, obey_the_window
        slow = socket.create_connection(stand.gateway.address.split(":"))  # type: ignore[arg-type]
        body = json.dumps(chat(stream=True)).encode()
        slow.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
            % (CHAT.encode(), len(body), body)
        )
        job = await asyncio.wait_for(executor.jobs.get(), DEADLINE_SECONDS)
        executor.script = usual
        for _ in range(20):
            answer = await http.post(CHAT, json=chat(stream=True))
            assert answer.text.endswith("[DONE]\n\n")
        slow.close()
        await asyncio.wait_for(job.cancelled.wait(), DEADLINE_SECONDS)
        assert job.sent_tokens < 1000, "the window held the job back"


async def test_credit_lets_a_long_answer_run_on() -> None:
    executor = FakeJobExecutor()

    async def obey_the_window(job: FakeJob) -> None:
        job.admit()
        for sent in range(100):
            if sent >= 8 + job.credited:
                job.credited = (await job.credits.get()).delivered_tokens
            job.tokens(f"{sent} ")
        job.finish()

    executor.script = obey_the_window
    async with gateway_stand(executor, token_window=8) as stand, client(stand) as http:
        for stream in (False, True):
            answer = await http.post(CHAT, json=chat(stream=stream))
            assert answer.status_code == 200 and "99 " in answer.text


async def test_jobs_go_to_the_executor_with_the_fewest() -> None:
    executors = [FakeJobExecutor(f"je-{i}") for i in range(2)]
    for executor in executors:
        executor.script = admit_only
    async with (
        gateway_stand(*executors) as stand,
        client(stand) as http,
        http.stream("POST", CHAT, json=chat(stream=True)),
        http.stream("POST", CHAT, json=chat(stream=True)),
    ):
        assert [executor.jobs.qsize() for executor in executors] == [1, 1]


async def test_a_draining_job_executor_finishes_what_it_has() -> None:
    executors = [FakeJobExecutor(f"je-{i}") for i in range(2)]
    async with gateway_stand(*executors) as stand, client(stand) as http:
        executors[0].script = one_word
        executors[1].script = one_word
        async with http.stream("POST", CHAT, json=chat(stream=True)) as response:
            reader = EventReader(response)
            assert (await reader.text(), await reader.text()) == ("", "word")
            busy = executors[0] if executors[0].jobs.qsize() else executors[1]
            busy.member.state = types.LIFECYCLE_STATE_DRAINING
            await stand.show(links=1)
            job = await busy.jobs.get()
            job.tokens(" more")
            job.finish()
            assert await reader.text() == " more"
        await until(lambda: busy.streams_open == 0, what="the idle link is closed")


async def test_a_deadline_ends_a_stream_with_an_error_event() -> None:
    executor = FakeJobExecutor()
    executor.script = one_word
    # Long enough that the stream has begun by then.
    async with gateway_stand(executor, job_seconds_max=10.0) as stand, client(stand) as http:
        streamed = await http.post(CHAT, json=chat(stream=True))
        assert '"code":"deadline_exceeded"' in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")


async def test_a_deadline_ends_a_whole_answer_with_504() -> None:
    executor = FakeJobExecutor()
    executor.script = one_word
    async with gateway_stand(executor, job_seconds_max=0.2) as stand, client(stand) as http:
        assert (await http.post(CHAT, json=chat())).status_code == 504


async def test_drain_lets_streams_finish_and_refuses_new_work(
    stand: GatewayStand, http: httpx.AsyncClient
) -> None:
    stand.executor.script = one_word
    async with http.stream("POST", CHAT, json=chat(stream=True)) as response:
        reader = EventReader(response)
        assert (await reader.text(), await reader.text()) == ("", "word")
        draining = asyncio.create_task(stand.gateway.drain())
        await until(lambda: stand.gateway.lifecycle.is_draining, what="draining")
        await until(lambda: not listens(stand.port), what="new connections to be refused")
        with pytest.raises(httpx.ConnectError):
            await http.post(CHAT, json=chat())
        assert not draining.done()
        (await stand.executor.jobs.get()).finish()
        assert (await reader.next())["choices"][0]["finish_reason"] == "stop"
        assert await reader.next() is None
    await asyncio.wait_for(draining, DEADLINE_SECONDS)


async def test_an_unexpected_exception_is_a_500_in_shape(
    stand: GatewayStand, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_exchange: Exchange) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(stand.gateway.application._routes, "/v1/models", ("GET", broken))
    response = await http.get("/v1/models", headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["error"]["type"] == "server_error"
    assert (await http.post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize(
    "batch",
    [
        jobs.JobTokenBatch(handles=[1], choice_indexes=[0], first_token_indexes=[0]),
        jobs.JobTokenBatch(details=[jobs.TokenDetails(entry=9)]),
    ],
    ids=["columns of unequal length", "details of no entry"],
)
async def test_a_batch_that_cannot_be_read_ends_its_stream_and_the_next_one_works(
    stand: GatewayStand, http: httpx.AsyncClient, batch: jobs.JobTokenBatch
) -> None:
    async def break_the_contract(job: FakeJob) -> None:
        job.admit()
        stand.executor.send(jobs.JobsResponse(tokens=batch))

    stand.executor.script = break_the_contract
    response = await http.post(CHAT, json=chat())
    check_unavailable(response, "job_executor_lost")
    stand.executor.script = say_hello
    await stand.until_links(1)
    assert (await http.post(CHAT, json=chat())).status_code == 200


async def test_an_error_of_our_own_in_reading_a_stream_ends_only_that_stream(
    stand: GatewayStand, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: WholeAnswer, *_arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(WholeAnswer, "tokens", broken)
        assert (await http.post(CHAT, json=chat())).status_code == 503
    await stand.until_links(1)
    assert (await http.post(CHAT, json=chat())).status_code == 200
