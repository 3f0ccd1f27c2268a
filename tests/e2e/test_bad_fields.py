"""Every field of the API, wrong in every way: a 400 that names it, and nobody else feels it."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.e2e.bad_requests import CHAT, COMPLETIONS, EMBEDDINGS, FIELDS, Bad
from tests.stack import ANSWER_SECONDS_MAX, Stack
from tools.bad_input_pack import good_client, send, send_all


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=ANSWER_SECONDS_MAX) as api:
        yield api


@pytest.mark.parametrize("group", FIELDS)
async def test_a_bad_field_is_named_and_harms_no_other_client(
    api: httpx.AsyncClient, model: str, group: str
) -> None:
    async with good_client(api, model) as good:
        answers = await send_all(api, model, FIELDS[group], streams=(True,))
    assert len(answers) >= len(FIELDS[group])
    for answer in answers:
        assert answer.is_refused, (answer.bad.change, answer.status, answer.param, answer.text)
    assert good.is_unharmed, good.wrong


async def test_every_error_has_the_shape_of_openai(api: httpx.AsyncClient, model: str) -> None:
    for bads in FIELDS.values():
        reply = await api.post(
            bads[0].path,
            content=bads[0].body(model),
            headers={"content-type": "application/json"},
        )
        error = reply.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert 10 < len(error["message"]) < 400


async def test_the_whole_pack_at_once(api: httpx.AsyncClient, model: str) -> None:
    """In a crowd, too, each is told of its own field."""
    bads = [bad for group in FIELDS.values() for bad in group[::9]]
    async with good_client(api, model) as good:
        answers = await asyncio.gather(*(send(api, model, bad, stream=False) for bad in bads))
    assert [a.bad.change for a in answers if not a.is_refused] == []
    assert good.is_unharmed, good.wrong


async def test_a_generator_makes_no_embeddings(api: httpx.AsyncClient, model: str) -> None:
    answer = await send(api, model, Bad(EMBEDDINGS, {"dimensions": 5}, "model"), stream=False)
    assert answer.is_refused, answer.text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_second_wrong_field_is_found_as_well(
    api: httpx.AsyncClient, model: str, path: str
) -> None:
    """What only the job executor or the engine can know does not hide what the gateway sees."""
    wrong_for_engine = {"guided_regex": "("}
    for change, param in (
        ({**wrong_for_engine, "n": 0}, "n"),
        ({**wrong_for_engine, "stop_token_ids": [10**6]}, "stop_token_ids[0]"),
        ({**wrong_for_engine, "min_tokens": 2000}, "min_tokens"),
        (wrong_for_engine, "guided_regex"),
    ):
        answer = await send(api, model, Bad(path, change, param), stream=True)
        assert answer.is_refused, answer.text
