"""The tokens that a context keeps: rendered and tokenized with this and that behind it."""

from collections.abc import Iterable

from deepflow.errors import InvalidRequest
from deepflow.v1 import contexts_pb2, jobs_pb2
from services.job_executor.contexts.prefix import common_prefix
from services.job_executor.jobs import chat, completion
from services.job_executor.jobs.planning import too_long
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import PromptTooLong
from services.job_executor.tokenizer.pool import WorkPool

# What may follow: letters and line breaks, for a tokenizer may join the latter with what is before.
_NEXT_MESSAGES = (("user", "a"), ("user", "\n"), ("assistant", "a"), ("assistant", "\n"))
_NEXT_TEXTS = ("", "a", " 7", "\n")
# A word goes on behind a text's end: its last tokens may become others.
_LOOSE_TOKENS = 8


async def kept_tokens(
    content: contexts_pb2.ContextContent, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[int]:
    """Raises InvalidRequest for what the model or its template refuses, and for nothing to keep."""
    param = chat.PARAM if content.HasField("chat") else completion.PARAM
    try:
        if content.HasField("chat"):
            tokens = await _of_chat(content.chat, model, pool, tokens_max)
        else:
            tokens = await _of_prompt(content.prompt, model, pool, tokens_max)
    except PromptTooLong as error:
        raise too_long(str(error), tokens_max, param) from error
    if len(tokens) >= tokens_max:
        raise too_long(f"{len(tokens)} tokens", tokens_max, param)
    if not tokens:
        raise InvalidRequest(
            f"no token of {param} is the same whatever follows; send more to keep",
            param=param,
            reason="empty",
        )
    return tokens


async def _of_chat(
    given: jobs_pb2.ChatInput, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[int]:
    """Templates refuse some orders of roles: of what may follow, what this one lets pass counts."""
    prompts: list[list[int]] = []
    refusals: list[InvalidRequest] = []
    for role, text in _NEXT_MESSAGES:
        followed = jobs_pb2.ChatInput()
        followed.CopyFrom(given)
        followed.messages.add(role=role, content=text)
        try:
            prompts += await chat.prompts(followed, model, pool, tokens_max)
        except InvalidRequest as error:
            refusals.append(error)
    if len(prompts) < 2:
        raise refusals[0]
    return common_prefix(prompts)


async def _of_prompt(
    given: jobs_pb2.Prompt, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[int]:
    """Token ids are kept as they are."""
    if given.WhichOneof("kind") == "tokens":
        return (await _encode([given], model, pool, tokens_max))[0]
    followed = (jobs_pb2.Prompt(text=given.text + text) for text in _NEXT_TEXTS)
    tokens = common_prefix(await _encode(followed, model, pool, tokens_max))
    return tokens[: max(len(tokens) - _LOOSE_TOKENS, 1)]


async def _encode(
    prompts: Iterable[jobs_pb2.Prompt], model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[list[int]]:
    work = jobs_pb2.CompletionInput(prompts=prompts)
    return await completion.prompts(work, model, pool, tokens_max)
