"""POST /v1/embeddings at a real gateway, beside a job executor that follows a script."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from deepflow import errors
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    MODEL,
    FakeJob,
    FakeJobExecutor,
    GatewayStand,
    client,
    gateway_stand,
    openai_client,
)
from tests.servers import listens, until

SIZE = 3


@pytest.fixture
async def executor() -> FakeJobExecutor:
    executor = FakeJobExecutor()
    executor.script = answer_backwards
    return executor


@pytest.fixture
async def stand(executor: FakeJobExecutor) -> AsyncIterator[GatewayStand]:
    async with gateway_stand(executor, vectors_max=8) as stand:
        yield stand


def vector(index: int) -> list[float]:
    return [index + 0.25, -1.5, 1e-3]


def send_vector(job: FakeJob, index: int, prompt_tokens: int = 5) -> None:
    embedding = jobs.JobEmbedding(
        handle=job.handle,
        index=index,
        values=array("f", vector(index)).tobytes(),
        prompt_tokens=prompt_tokens,
    )
    job._executor.send(jobs.JobsResponse(embedding=embedding))


async def answer_backwards(job: FakeJob) -> None:
    job.admit()
    for index in reversed(range(len(job.job.embedding.prompts))):
        send_vector(job, index)


async def post(stand: GatewayStand, **body: Any) -> httpx.Response:
    async with client(stand) as http:
        return await http.post("/v1/embeddings", json={"model": MODEL, **body})


async def test_vectors_are_answered_in_the_order_of_their_inputs(
    stand: GatewayStand, executor: FakeJobExecutor
) -> None:
    reply = await post(stand, input=["a", "b", "c"], user="me", dimensions=SIZE)
    assert reply.status_code == 200
    answer = reply.json()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    for index, item in enumerate(answer["data"]):
        assert item["object"] == "embedding"
        assert item["embedding"] == array("f", vector(index)).tolist()
    assert answer["usage"] == {"prompt_tokens": 15, "total_tokens": 15}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    job = (await executor.jobs.get()).job
    assert [prompt.text for prompt in job.embedding.prompts] == ["a", "b", "c"]
    assert job.embedding.dimensions == SIZE
    assert job.context.request_id == reply.headers["x-request-id"]
    assert job.context.deadline_unix_ms > 0


async def test_the_real_client_asks_for_base64(stand: GatewayStand) -> None:
    async with openai_client(stand) as asks:
        answer = await asks.embeddings.create(model=MODEL, input=[[1, 2], [3]])
    assert [item.embedding for item in answer.data] == [
        array("f", vector(index)).tolist() for index in (0, 1)
    ]


async def test_a_refusal_after_admission_is_the_answer(
    stand: GatewayStand, executor: FakeJobExecutor
) -> None:
    async def refuse_late(job: FakeJob) -> None:
        job.admit()
        send_vector(job, 0)
        job.refuse(errors.Unavailable("the task executor is gone", retry_after_seconds=2))

    executor.script = refuse_late
    reply = await post(stand, input=["a", "b"])
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"
    assert "the task executor is gone" in reply.text


async def test_a_refusal_keeps_its_field(stand: GatewayStand, executor: FakeJobExecutor) -> None:
    async def refuse(job: FakeJob) -> None:
        job.refuse(errors.InvalidRequest("too long", param="input[1]", reason="too_long"))

    executor.script = refuse
    reply = await post(stand, input=["a", "b"])
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "input[1]", "too_long")


@pytest.mark.parametrize("fault", ["index", "twice", "no vector"])
async def test_a_job_executor_that_breaks_the_contract_fails_one_request(
    stand: GatewayStand, executor: FakeJobExecutor, fault: str
) -> None:
    async def misbehave(job: FakeJob) -> None:
        job.admit()
        if fault == "no vector":
            job.finish(0)
            send_vector(job, 1)
        else:
            send_vector(job, 7 if fault == "index" else 0)
            send_vector(job, 0)

    executor.script = misbehave
    reply = await post(stand, input=["a", "b"])
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "broken_stream"
    executor.script = answer_backwards
    assert (await post(stand, input="a")).status_code == 200


async def test_a_client_that_leaves_cancels_its_job(
    stand: GatewayStand, executor: FakeJobExecutor
) -> None:
    async def admit_only(job: FakeJob) -> None:
        job.admit()

    executor.script = admit_only
    asking = asyncio.create_task(post(stand, input="a"))
    job = await executor.jobs.get()
    asking.cancel()
    await asyncio.wait_for(job.cancelled.wait(), DEADLINE_SECONDS)
    await until(lambda: stand.gateway.under_way.count == 0, what="the request is over")


async def test_inputs_of_all_requests_have_a_bound(
    stand: GatewayStand, executor: FakeJobExecutor
) -> None:
    release = asyncio.Event()

    async def wait(job: FakeJob) -> None:
        await release.wait()
        await answer_backwards(job)

    executor.script = wait
    first = asyncio.create_task(post(stand, input=["a"] * 6))
    await executor.jobs.get()
    refused = await post(stand, input=["b"] * 3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in refused.headers
    release.set()
    assert (await first).status_code == 200
    assert (await post(stand, input=["b"] * 3)).status_code == 200


async def test_a_gateway_drains_its_embeddings(
    stand: GatewayStand, executor: FakeJobExecutor
) -> None:
    release = asyncio.Event()

    async def wait(job: FakeJob) -> None:
        await release.wait()
        await answer_backwards(job)

    executor.script = wait
    asking = asyncio.create_task(post(stand, input="a"))
    await executor.jobs.get()
    draining = asyncio.create_task(stand.gateway.drain())
    await until(lambda: stand.gateway.lifecycle.is_draining, what="it drains")
    await until(lambda: not listens(stand.port), what="new connections to be refused")
    assert not draining.done()
    release.set()
    assert (await asking).status_code == 200
    await draining


async def test_a_route_is_for_models_that_can_do_it(stand: GatewayStand) -> None:
    view = stand.view()
    view.deployments[0].facts.task = cluster.MODEL_TASK_GENERATE
    stand.gateway.adopt(view)
    reply = await post(stand, input="a")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    view = stand.view()
    view.deployments[0].facts.task = cluster.MODEL_TASK_EMBED
    stand.gateway.adopt(view)
    assert (await post(stand, input="a")).status_code == 200
    async with openai_client(stand) as asks:
        with pytest.raises(openai.BadRequestError, match="generates no text"):
            await asks.completions.create(model=MODEL, prompt="a")


async def test_the_route_is_described(stand: GatewayStand) -> None:
    async with client(stand) as http:
        described = (await http.get("/openapi.json")).json()["paths"]["/v1/embeddings"]["post"]
        page = (await http.get("/docs")).text
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["model", "input"]
    assert {"encoding_format", "dimensions", "user"} <= schema["properties"].keys()
    assert "/v1/embeddings" in page
