"""What is kept of a context is what every prompt that begins with it begins with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2, contexts_pb2, jobs_pb2
from services.job_executor.contexts.probing import kept_tokens
from services.job_executor.jobs import chat, completion
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import ModelTokenizer
from services.job_executor.tokenizer.pool import WorkPool
from tests.unit.job_executor.model_folders import TEMPLATE, byte_level_tokenizer, write_folder

TOKENS_MAX = 2000
# As some models have it: roles take turns, and whatever stands at the ends of a text is dropped.
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "{{ '<turn>' + message.role + '\n' + message.content | trim + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
# It shows the last message first, so that nothing but its very beginning is the same.
BACKWARDS = "{% for message in messages | reverse %}{{ '<turn>' + message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture
async def pool() -> AsyncIterator[WorkPool]:
    pool = WorkPool(threads=1, queue_max=64, seconds_max=60)
    yield pool
    pool.close()


def model_of(folder: Path, tokenizer: Tokenizer, template: str) -> ServedModel:
    path = write_folder(folder, tokenizer, chat_template=template)
    deployment = cluster_pb2.Deployment(name="demo", source=str(path))
    return ServedModel(deployment, ModelTokenizer.from_folder(path))


def chat_of(*messages: tuple[str, str]) -> jobs_pb2.ChatInput:
    work = jobs_pb2.ChatInput()
    for role, text in messages:
        work.messages.add(role=role, content=text)
    return work


RULES = ("user", "What is a task executor? It holds a model. " * 3)
ANSWER = ("assistant", "It turns tasks into tokens.")
NEXT = ["a task", "\nWhat", "\n\n\n", "日本", " 7", "😀", "<turn>x"]


@pytest.mark.parametrize("text", NEXT)
async def test_a_chat_begins_with_what_is_kept(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool, text: str
) -> None:
    model = model_of(tmp_path, tokenizer, TEMPLATE)
    given = chat_of(RULES)
    kept = await kept_tokens(contexts_pb2.ContextContent(chat=given), model, pool, TOKENS_MAX)
    shown = tokenizer.decode(kept, skip_special_tokens=False)
    assert shown.startswith(f"<bos><turn>user\n{RULES[1]}\n")
    for role in ("user", "assistant", "system"):
        (prompt,) = await chat.prompts(chat_of(RULES, (role, text)), model, pool, TOKENS_MAX)
        assert prompt[: len(kept)] == kept


async def test_a_template_that_wants_turns_is_asked_with_a_role_that_it_takes(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool
) -> None:
    model = model_of(tmp_path, tokenizer, STRICT)
    for given, following in (
        ((RULES,), (ANSWER, ("user", "\n7"))),
        ((RULES, ANSWER), (("user", "\n7"),)),
    ):
        content = contexts_pb2.ContextContent(chat=chat_of(*given))
        kept = await kept_tokens(content, model, pool, TOKENS_MAX)
        (prompt,) = await chat.prompts(chat_of(*given, *following), model, pool, TOKENS_MAX)
        assert prompt[: len(kept)] == kept
        assert len(kept) > 40


async def test_what_the_template_refuses_in_any_case_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool
) -> None:
    model = model_of(tmp_path, tokenizer, STRICT)
    content = contexts_pb2.ContextContent(chat=chat_of(ANSWER))
    with pytest.raises(InvalidRequest, match="take turns") as caught:
        await kept_tokens(content, model, pool, TOKENS_MAX)
    assert caught.value.param == "messages"


async def test_a_template_that_moves_it_behind_leaves_next_to_nothing(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool
) -> None:
    model = model_of(tmp_path, tokenizer, BACKWARDS)
    kept = await kept_tokens(
        contexts_pb2.ContextContent(chat=chat_of(RULES)), model, pool, TOKENS_MAX
    )
    assert tokenizer.decode(kept, skip_special_tokens=False) == "<turn>"


@pytest.mark.parametrize("text", ["ask executor", "s into tokens", " and", "\n", "日本語"])
async def test_a_text_goes_on_within_a_word(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool, text: str
) -> None:
    model = model_of(tmp_path, tokenizer, TEMPLATE)
    first = "What is a task executor? It holds a model and turns t"
    content = contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text=first))
    kept = await kept_tokens(content, model, pool, TOKENS_MAX)
    whole = jobs_pb2.CompletionInput(prompts=[jobs_pb2.Prompt(text=first + text)])
    (prompt,) = await completion.prompts(whole, model, pool, TOKENS_MAX)
    assert kept and prompt[: len(kept)] == kept


async def test_what_fills_the_whole_context_is_too_long(
    tmp_path: Path, tokenizer: Tokenizer, pool: WorkPool
) -> None:
    model = model_of(tmp_path, tokenizer, TEMPLATE)
    ids = jobs_pb2.Prompt(tokens=jobs_pb2.TokenIds(ids=range(3, 23)))
    content = contexts_pb2.ContextContent(prompt=ids)
    assert await kept_tokens(content, model, pool, 21) == list(range(3, 23))
    with pytest.raises(InvalidRequest) as caught:
        await kept_tokens(content, model, pool, 20)
    assert (caught.value.param, caught.value.reason) == ("prompt", "context_length_exceeded")
