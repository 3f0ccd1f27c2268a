"""Fields of OpenAI's schema: honoured, inert or refused; and each honoured one is checked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from deepflow.errors import InvalidRequest
from services.gateway.schema.chat import CHAT
from services.gateway.schema.completion import COMPLETION, check_token_ids
from services.gateway.schema.docs import docs_page
from services.gateway.schema.fields import Fields
from services.gateway.schema.grammar import JSON_SCHEMA
from services.gateway.schema.limits import Limits
from services.gateway.schema.openapi import openapi_document
from services.gateway.schema.request import GenerationRequest, read_chat, read_completion
from services.gateway.schema.tools import FUNCTION

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


@pytest.mark.parametrize("fields", [CHAT, COMPLETION, FUNCTION, JSON_SCHEMA])
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


def test_what_is_absent_stays_absent() -> None:
    request = chat()
    sampling = request.sampling
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"):
        assert not sampling.HasField(name)
    assert not sampling.HasField("logprobs") and not sampling.HasField("prompt_logprobs")
    assert not sampling.HasField("grammar") and not sampling.show_special_tokens
    assert (request.n, request.seed, list(sampling.stop)) == (1, None, [])
    assert not request.stream and not request.return_prompt and request.logprobs is None


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
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.0, 0.5)
    assert (request.seed, list(sampling.stop), request.n) == (-3, ["END"], 2)
    assert request.stream and request.include_usage and request.user == "me"
    assert sampling.ignore_eos and request.return_token_ids and request.return_prompt


def test_every_way_of_drawing_arrives() -> None:
    given: dict[str, Any] = {
        "top_k": 7,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 2,
        "logit_bias": {"5": -100, "7": 0.5},
        "stop_token_ids": [3, 4],
        "min_tokens": 2,
        "max_tokens": 5,
        "prompt_logprobs": 3,
        "skip_special_tokens": False,
    }
    for request in (chat(**given), completion(**given)):
        sampling = request.sampling
        for name in ("top_k", "min_p", "repetition_penalty", "min_tokens", "prompt_logprobs"):
            assert getattr(sampling, name) == given[name], name
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (-0.5, 2.0)
        assert dict(sampling.logit_bias) == {5: -100.0, 7: 0.5}
        assert list(sampling.stop_token_ids) == [3, 4]
        assert sampling.show_special_tokens and request.prompt_logprobs == 3
        assert request.return_prompt and request.logprobs is None


def test_minus_one_is_another_word_for_every_token() -> None:
    assert chat(top_k=-1).sampling.top_k == 0 and chat(top_k=-1).sampling.HasField("top_k")


@given(st.floats(0, 2, exclude_min=True))
def test_what_is_above_zero_stays_above_zero_on_the_wire(value: float) -> None:
    assert completion(repetition_penalty=value).sampling.repetition_penalty > 0
    assert completion(top_p=min(value, 1.0)).sampling.top_p > 0


@given(
    st.one_of(
        st.floats(),
        st.integers(),
        st.none(),
        st.booleans(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.integers()),
    )
)
def test_any_value_is_taken_or_its_field_is_named(value: Any) -> None:
    for field in (*CHAT.honoured, *COMPLETION.honoured):
        try:
            field.read(value, field.name, LIMITS)
        except InvalidRequest as error:
            assert error.param.startswith(field.name)


def test_every_id_is_checked_against_the_vocabulary() -> None:
    chat(logit_bias={"99": 1}, stop_token_ids=[99]).check_ids(100)
    biased = chat(logit_bias={"100": 1})
    assert refusal(biased.check_ids, vocab_size=100).param == "logit_bias.100"
    stopped = chat(stop_token_ids=[1, 100])
    assert refusal(stopped.check_ids, vocab_size=100).param == "stop_token_ids[1]"
    assert refusal(completion(prompt=[100]).check_ids, vocab_size=100).param == "prompt[0]"


def test_an_echo_shows_log_probabilities_of_the_prompt_where_any_are_shown() -> None:
    both = completion(echo=True, logprobs=2)
    assert (both.sampling.prompt_logprobs, both.prompt_logprobs) == (2, None)
    more = completion(echo=True, logprobs=2, prompt_logprobs=5)
    assert (more.sampling.prompt_logprobs, more.prompt_logprobs) == (5, 5)
    assert not completion(echo=True).sampling.HasField("prompt_logprobs")


def test_no_tokens_are_asked_for_only_where_the_prompt_is_shown() -> None:
    assert refusal(completion, max_tokens=0).param == "max_tokens"
    assert refusal(chat, max_completion_tokens=0).param == "max_completion_tokens"
    for request in (
        completion(max_tokens=0, echo=True),
        completion(max_tokens=0, prompt_logprobs=0),
        chat(max_completion_tokens=0, prompt_logprobs=0),
    ):
        assert request.sampling.HasField("max_tokens") and request.sampling.max_tokens == 0


def test_best_of_says_what_n_says() -> None:
    assert completion(best_of=2, n=2).n == 2 and completion(best_of=1, n=2).n == 2
    assert refusal(completion, best_of=2).param == "best_of"


def test_no_tools_at_all_is_said_in_several_ways() -> None:
    for name, value in (("tools", []), ("tool_choice", "none"), ("tool_choice", "auto")):
        work: Any = chat(**{name: value}).work
        assert not work.tools and not work.HasField("tool_choice")


def test_refused_fields_say_what_to_use() -> None:
    assert "use 'tools'" in refusal(chat, functions=[]).message
    assert "'tool_choice'" in refusal(chat, function_call="auto").message


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
        refused = refusal(check_token_ids, prompts=work, vocab_size=100)
        assert (refused.param, refused.reason) == (param, "token_id_out_of_range")


def test_docs_and_openapi_name_every_field() -> None:
    page, document = docs_page(), str(openapi_document())
    for fields in (CHAT, COMPLETION):
        for name in names(fields):
            assert f"<code>{name}</code>" in page
        for name in set(names(fields)) - set(fields.refused):
            assert f"'{name}'" in document
