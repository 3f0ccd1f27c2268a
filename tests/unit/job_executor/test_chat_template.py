"""Templates from the model folder: where they come from, what they may do."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deepflow.core.model_folder import ModelFolderError
from deepflow.errors import InvalidRequest
from services.job_executor.tokenizer.chat_template import ChatTemplate, read_chat_template
from tests.unit.job_executor.model_folders import TEMPLATE, byte_level_tokenizer, write_folder
from tests.unit.job_executor.tool_templates import (
    HERMES_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    THINKING,
)

HI = [{"role": "user", "content": "hi <b> & ü"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<bos>"}).render(HI)


def test_a_chat_ends_with_the_assistants_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_folder(tmp_path, tokenizer, chat_template=TEMPLATE)
    template = read_chat_template(tmp_path)
    assert template is not None
    assert template.render(HI) == "<bos><turn>user\nhi <b> & ü\n<turn>assistant\n"


def test_special_tokens_may_be_texts_or_objects(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_folder(tmp_path, tokenizer, chat_template="{{ bos_token }}{{ eos_token }}")
    template = read_chat_template(tmp_path)
    assert template is not None and template.render(HI) == "<bos><eos>"


def test_a_file_of_its_own_wins(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_folder(tmp_path, tokenizer, chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file")
    template = read_chat_template(tmp_path)
    assert template is not None and template.render(HI) == "file"


def test_of_several_templates_the_default_is_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "default"},
    ]
    write_folder(tmp_path, tokenizer, chat_template=named)
    template = read_chat_template(tmp_path)
    assert template is not None and template.render(HI) == "default"


@pytest.mark.parametrize("value", [[{"name": "default"}], ["text"], {"a": 1}, 7])
def test_a_template_that_is_none_is_the_folders_fault(
    value: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write_folder(tmp_path, tokenizer, chat_template=value)
    with pytest.raises(ModelFolderError, match="chat_template"):
        read_chat_template(tmp_path)


def test_a_model_without_a_template_has_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert read_chat_template(write_folder(tmp_path, tokenizer)) is None


def test_a_template_that_does_not_compile_is_the_folders_fault() -> None:
    with pytest.raises(ModelFolderError, match="does not compile"):
        ChatTemplate("{% for %}", {})


def test_json_is_written_as_models_were_trained_on() -> None:
    assert render("{{ messages[0] | tojson }}") == json.dumps(HI[0], ensure_ascii=False)


def test_loop_controls_and_dates_are_there() -> None:
    source = "{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(source + "{{ strftime_now('%Y') | length }}") == "014"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ range(10 ** 9) }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ raise_exception('no system role here') }}",
    ],
)
def test_what_a_template_must_not_do_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ' ' * width }}",
        "{{ width * [bos_token] }}",
        "{{ 2 ** width }}",
        "{{ width ** width }}",
        "{{ (width ** 9) ** 9 ** 9 }}",
    ],
)
def test_a_clients_number_makes_no_gigabytes(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<bos>"})
    with pytest.raises(InvalidRequest, match="becomes too"):
        template.render(HI, None, {"width": 10**12})
    assert template.render(HI, None, {"width": 0 if "9" in source else 3})


def test_a_template_for_tools_is_taken_where_there_are_tools(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    named = [
        {"name": "default", "template": "default"},
        {"name": "tool_use", "template": "tools: {{ tools[0].function.name }}"},
    ]
    write_folder(tmp_path, tokenizer, chat_template=named)
    template = read_chat_template(tmp_path)
    assert template is not None and template.knows_tools
    assert template.render(HI) == "default"
    assert template.render(HI, TOOLS) == "tools: f"


def test_a_developers_message_is_a_system_message_to_templates_that_know_no_developer() -> None:
    message = [{"role": "developer", "content": "be brief"}]
    assert ChatTemplate("{{ messages[0].role }}", {}).render(message) == "system"
    knowing = ChatTemplate("{% if messages[0].role == 'developer' %}yes{% endif %}", {})
    assert knowing.render(message) == "yes"


def test_arguments_are_variables_of_the_template() -> None:
    template = ChatTemplate("{{ mood | default('calm') }} {{ add_generation_prompt }}", {})
    assert template.render(HI) == "calm True"
    assert template.render(HI, None, {"mood": "glad"}) == "glad True"
    assert template.render(HI, None, {"add_generation_prompt": False}) == "calm False"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", []),
        ("tools", []),
        ("bos_token", "x"),
        ("pad_token", "x"),
        ("raise_exception", 1),
        ("add_generation_prompt", "yes"),
        ("continue_final_message", 1),
    ],
)
def test_reserved_arguments_and_bad_ones_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("{{ bos_token }}", {"bos_token": "<bos>"}).render(HI, None, {name: value})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_the_last_message_can_be_continued_only_where_it_is_shown() -> None:
    goes_on = {"continue_final_message": True}
    for source, arguments in (
        ("nothing of it", goes_on),
        (TEMPLATE, {**goes_on, "add_generation_prompt": True}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ChatTemplate(source, {}).render(HI, None, arguments)
        assert caught.value.param == "chat_template_kwargs.continue_final_message"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is <outside> & why",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Größe"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln"}},
}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "How is it in Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": " It rains. "},
    {"role": "user", "content": "And now?"},
]
BRIEF: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
BEGUN: list[dict[str, Any]] = [{"role": "assistant", "content": " It still "}]


@pytest.mark.parametrize("source", [HERMES_LIKE, THINKING, LLAMA_LIKE, MISTRAL_LIKE])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize(
    ("before", "after", "arguments"),
    [
        ([], [], {}),
        (BRIEF, [], {}),
        ([], [], {"enable_thinking": False, "date_string": "today"}),
        ([], [], {"add_generation_prompt": False}),
        ([], BEGUN, {"continue_final_message": True}),
    ],
)
def test_prompts_are_those_that_transformers_makes(
    source: str,
    tools: Any,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    arguments: dict[str, Any],
    tokenizer: Tokenizer,
) -> None:
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    make: Any = PreTrainedTokenizerFast
    theirs = make(tokenizer_object=tokenizer, chat_template=source, **tokens)
    messages = [*before, *TALK, *after]
    adds_turn = not arguments.get("continue_final_message", False)
    options = {"add_generation_prompt": adds_turn, **arguments}
    try:
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except TemplateError as error:
        with pytest.raises(InvalidRequest, match=str(error)):
            ChatTemplate(source, tokens).render(messages, tools, arguments)
    else:
        assert ChatTemplate(source, tokens).render(messages, tools, arguments) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | dictsort }}",  # an AttributeError
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_whatever_a_template_ends_in_is_a_refusal(source: str) -> None:
    with pytest.raises(InvalidRequest, match="template refuses") as refused:
        render(source)
    assert refused.value.reason == "chat_template_error"


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(ModelFolderError, match=r"chat_template\.jinja: not valid UTF-8"):
        read_chat_template(tmp_path)
