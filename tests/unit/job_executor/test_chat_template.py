"""Templates from the model folder: where they come from, what they may do."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deepflow.core.model_folder import ModelFolderError
from deepflow.errors import InvalidRequest
from services.job_executor.tokenizer.chat_template import ChatTemplate, read_chat_template
from tests.unit.job_executor.model_folders import TEMPLATE, byte_level_tokenizer, write_folder

HI = [{"role": "user", "content": "hi <b> & ü"}]


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
