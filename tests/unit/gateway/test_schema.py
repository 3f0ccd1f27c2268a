"""Fields of OpenAI's schema: honoured, inert or refused; and each honoured one is checked."""

from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from deepflow.errors import InvalidRequest
from services.gateway.schema.chat import CHAT
from services.gateway.schema.completion import COMPLETION, check_token_ids
from services.gateway.schema.docs import docs_page
from services.gateway.schema.fields import Fields
from services.gateway.schema.limits import Limits
from services.gateway.schema.openapi import openapi_document
from services.gateway.schema.request import GenerationRequest, read_chat, read_completion

LIMITS = Limits(n=4, prompts=3, choices=6, messages=5, stop_strings=4, stop_characters=8)


def chat(**more: Any) -> GenerationRequest:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    return read_chat(document, LIMITS)


def completion(**more: Any) -> GenerationRequest:
    return read_completion({"model": "m", "prompt": "hi", **more}, LIMITS)


def refusal(call: Any, **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        call(**more)
    return raised.value


def names(fields: Fields) -> list[str]:
    return [
        *(f.name for f in fields.honoured),
        *(f.name for f in fields.inert),
        *fields.refused,
    ]


@pytest.mark.parametrize(
    ("fields", "known_to_openai"),
    [
        (
            CHAT,
            chat_params.CompletionCreateParamsBase.__annotations__.keys()
            | chat_params.CompletionCreateParamsStreaming.__annotations__.keys(),
        ),
        (
            COMPLETION,
            completion_params.CompletionCreateParamsBase.__annotations__.keys()
            | completion_params.CompletionCreateParamsStreaming.__annotations__.keys(),
        ),
    ],
)
def test_every_field_of_openai_is_in_exactly_one_table(
    fields: Fields, known_to_openai: set[str]
) -> None:
    ours = names(fields)
    assert known_to_openai - set(ours) == set()
    assert len(ours) == len(set(ours))


@pytest.mark.parametrize("fields", [CHAT, COMPLETION])
def test_null_is_the_same_as_leaving_a_field_out(fields: Fields) -> None:
    assert fields.read(dict.fromkeys(names(fields)), LIMITS) == {}


@pytest.mark.parametrize("fields", [CHAT, COMPLETION])
def test_inert_values_are_taken_and_others_refused_by_name(fields: Fields) -> None:
    for field in fields.inert:
        for value in field.values or ({"anything": 1},):
            assert fields.read({field.name: value}, LIMITS) == {}
        if field.values:
            error = refusal(fields.read, document={field.name: "odd"}, limits=LIMITS)
            assert (error.param, error.reason) == (field.name, "unsupported_field")


@pytest.mark.parametrize("fields", [CHAT, COMPLETION])
def test_refused_fields_are_refused_by_name(fields: Fields) -> None:
    for name in fields.refused:
        error = refusal(fields.read, document={name: 1}, limits=LIMITS)
        assert (error.param, error.reason) == (name, "unsupported_field")


def test_zero_and_false_are_different_values() -> None:
    assert refusal(chat, store=0).param == "store"
    assert refusal(chat, frequency_penalty=False).param == "frequency_penalty"
    chat(frequency_penalty=0.0)


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    error = refusal(chat, max_token=5)
    assert (error.param, error.reason) == ("max_token", "unknown_field")
    assert "did you mean 'max_tokens'?" in error.message


def test_the_defaults_are_those_of_openai() -> None:
    request = chat()
    assert (request.temperature, request.top_p, request.n) == (1.0, 1.0, 1)
    assert (request.max_tokens, request.seed, request.stop) == (0, None, [])
    assert not request.stream


def test_every_honoured_field_arrives() -> None:
    request = chat(
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=-3,
        stop="END",
        n=2,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        user="me",
        ignore_eos=True,
        return_token_ids=True,
    )
    assert (request.max_tokens, request.temperature, request.top_p) == (9, 0.0, 0.5)
    assert (request.seed, request.stop, request.n, request.user) == (-3, ["END"], 2, "me")
    assert request.stream and request.include_usage
    assert request.ignore_eos and request.return_token_ids


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    work = chat(messages=[{"role": "system", "content": parts, "name": "n"}]).work
    assert [(m.role, m.content, m.name) for m in work.messages] == [  # type: ignore[union-attr]
        ("system", "a\nb", "n")
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)],
)
def test_prompts_of_every_kind(prompt: Any, prompts: int) -> None:
    request = completion(prompt=prompt, n=2)
    assert (request.prompts, request.choices) == (prompts, prompts * 2)


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    check_token_ids(completion(prompt=[0, 99]).work, 100)  # type: ignore[arg-type]
    for prompt, param in (([0, 100], "prompt[1]"), ([[1], [2, 100]], "prompt[1][1]")):
        work = completion(prompt=prompt).work
        assert refusal(check_token_ids, prompts=work, vocab_size=100).param == param


def test_docs_and_openapi_name_every_field() -> None:
    page, document = docs_page(), str(openapi_document())
    for fields in (CHAT, COMPLETION):
        for name in names(fields):
            assert f"<code>{name}</code>" in page
        for name in set(names(fields)) - set(fields.refused):
            assert f"'{name}'" in document
