"""/tokenize and /detokenize, under both of their paths."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from tests.integration.gateway_support import (
    MODEL,
    FakeJobExecutor,
    GatewayStand,
    client,
    gateway_stand,
)
from tests.servers import until


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    async with gateway_stand(FakeJobExecutor()) as stand:
        yield stand


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_there_and_back(stand: GatewayStand, prefix: str) -> None:
    async with client(stand) as http:
        body = {"model": MODEL, "prompt": "AB", "return_token_strs": True}
        answer = (await http.post(f"{prefix}/tokenize", json=body)).json()
        assert answer == {
            "count": 2,
            "max_model_len": 4096,
            "tokens": [65, 66],
            "token_strs": ["A", "B"],
        }
        back = {"model": MODEL, "tokens": answer["tokens"]}
        assert (await http.post(f"{prefix}/detokenize", json=back)).json() == {"prompt": "AB"}
        empty = (await http.post(f"{prefix}/tokenize", json={"model": MODEL, "prompt": ""})).json()
        assert empty == {"count": 0, "max_model_len": 4096, "tokens": [], "token_strs": None}


async def test_what_the_job_executor_is_asked(stand: GatewayStand) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    async with client(stand) as http:
        for body in (
            {"prompt": "hi"},
            {"prompt": "hi", "add_special_tokens": False},
            {
                "messages": [{"role": "user", "content": "A"}],
                "tools": [tool],
                "chat_template_kwargs": {"x": 1},
                "add_generation_prompt": True,
            },
        ):
            response = await http.post("/tokenize", json={"model": MODEL, **body})
            assert response.status_code == 200, response.text
    plain, bare, chat = stand.executor.tokenize_requests
    assert plain == jobs.TokenizeRequest(model=MODEL, text="hi")
    assert bare == jobs.TokenizeRequest(model=MODEL, text="hi", add_special_tokens=False)
    assert chat.chat.messages[0].content == "A" and chat.chat.tools[0].name == "f"
    assert chat.chat.template_arguments_json == '{"x":1}'


async def test_what_the_job_executor_refuses_is_passed_on(stand: GatewayStand) -> None:
    stand.executor.tokenize_error = InvalidRequest("no template", param="messages")
    async with client(stand) as http:
        response = await http.post("/tokenize", json={"model": MODEL, "prompt": "x"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages"


async def test_without_a_job_executor_it_is_unavailable() -> None:
    async with gateway_stand() as stand, client(stand) as http:
        response = await http.post("/tokenize", json={"model": MODEL, "prompt": "x"})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1


async def test_only_so_many_texts_at_one_time() -> None:
    executor = FakeJobExecutor()
    executor.tokenizes.clear()
    body = {"model": MODEL, "prompt": "x"}
    async with gateway_stand(executor, tokenizations_max=1) as stand, client(stand) as http:
        first = asyncio.create_task(http.post("/tokenize", json=body))
        await until(lambda: bool(executor.tokenize_requests), what="the first text to arrive")
        second = await http.post("/v1/tokenize", json=body)
        assert second.status_code == 503 and second.json()["error"]["code"] == "overloaded"
        executor.tokenizes.set()
        assert (await first).status_code == 200
        assert (await http.post("/tokenize", json=body)).status_code == 200


async def test_a_job_executor_that_does_not_answer_has_a_deadline() -> None:
    executor = FakeJobExecutor()
    executor.tokenizes.clear()
    async with gateway_stand(executor, tokenize_seconds_max=0.1) as stand, client(stand) as http:
        response = await http.post("/tokenize", json={"model": MODEL, "prompt": "x"})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        # The answers of others have nothing to do with it.
        body = {"model": MODEL, "prompt": "x"}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
