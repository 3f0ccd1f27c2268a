"""Tokenize and Detokenize over real gRPC."""

from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow.errors import DeepFlowError, InvalidRequest, NotFound
from deepflow.v1 import jobs_pb2
from tests.integration.job_executor_rig import (
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    folder,
    gateway,
    rig,
    tokenizer,
)

__all__ = ["executor", "folder", "gateway", "rig", "tokenizer"]

BOS = 0
CHAT = jobs_pb2.ChatInput(messages=[jobs_pb2.ChatMessage(role="user", content="hi")])


async def tokenize(gateway: Gateway, **fields: Any) -> jobs_pb2.TokenizeResponse:
    request = jobs_pb2.TokenizeRequest(**{"model": "demo", **fields})
    answer = await gateway.call(gateway.stub.Tokenize, request)
    assert isinstance(answer, jobs_pb2.TokenizeResponse)
    return answer


async def detokenize(gateway: Gateway, ids: list[int], model: str = "demo") -> str:
    request = jobs_pb2.DetokenizeRequest(model=model, token_ids=ids)
    answer = await gateway.call(gateway.stub.Detokenize, request)
    return str(answer.text)


@pytest.mark.parametrize("text", ["", "is a", "emoji 😀 " * 500])
@pytest.mark.parametrize("add", [None, True, False])
async def test_a_text_and_its_tokens(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer, text: str, add: bool | None
) -> None:
    answer = await tokenize(gateway, text=text, add_special_tokens=add)
    expected = tokenizer.encode(text, add_special_tokens=add is not False)
    assert (list(answer.token_ids), list(answer.tokens)) == (expected.ids, expected.tokens)
    assert answer.max_tokens == 200
    assert await detokenize(gateway, expected.ids) == ("" if add is False else "<bos>") + text


@pytest.mark.parametrize("add", [None, True])
async def test_a_chat_goes_through_its_template(
    gateway: Gateway, tokenizer: Tokenizer, add: bool | None
) -> None:
    answer = await tokenize(gateway, chat=CHAT, add_special_tokens=add)
    text = "<bos><turn>user\nhi\n<turn>assistant\n"
    assert (
        tokenizer.decode(list(answer.token_ids), skip_special_tokens=False)
        == ("<bos>" if add else "") + text
    )


async def test_it_needs_no_task_executor(gateway: Gateway, rig: Rig) -> None:
    await rig.show()
    assert (await tokenize(gateway, text="x")).max_tokens == 256


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"text": "x", "model": "other"}, NotFound, "model"),
        ({}, InvalidRequest, "input"),
        ({"text": "word " * 5000}, InvalidRequest, "prompt"),
        ({"chat": jobs_pb2.ChatInput()}, InvalidRequest, "messages"),
    ],
)
async def test_what_cannot_be_tokenized_is_refused_by_name(
    gateway: Gateway, fields: dict[str, Any], kind: type[DeepFlowError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        await tokenize(gateway, **fields)
    assert caught.value.param == param
    assert (await tokenize(gateway, text="x")).token_ids[0] == BOS


async def test_an_id_that_no_token_has_is_named(gateway: Gateway) -> None:
    with pytest.raises(InvalidRequest, match="0 to 419") as caught:
        await detokenize(gateway, [5, 6, 420])
    assert caught.value.param == "token_ids[2]"
    with pytest.raises(NotFound):
        await detokenize(gateway, [5], model="other")
    assert await detokenize(gateway, []) == ""
