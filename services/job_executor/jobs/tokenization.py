"""Texts and chats to token ids and back, for clients that want to know and not to generate."""

from collections.abc import Callable
from typing import TypeVar

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.jobs import chat
from services.job_executor.jobs.completion import INLINE_CHARACTERS_MAX
from services.job_executor.jobs.parts import Parts
from services.job_executor.jobs.planning import INLINE_TOKENS_MAX, too_long
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import PromptTooLong

PARAM = "prompt"
# Of one answer or question; a text may well have more tokens than the model's context holds.
TOKENS_MAX = 1024 * 1024

T = TypeVar("T")


class Tokenization:
    """Work goes through the same pool as prompts do: same threads, queue and time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def tokenize(self, request: jobs_pb2.TokenizeRequest) -> jobs_pb2.TokenizeResponse:
        """Raises InvalidRequest for what a prompt would be refused for, but for its length.

        A text that is far longer than the context is not looked at to its end, and refused.
        """
        model = await self._parts.library.get(request.model)
        tokens_max = self._parts.tokens_max(model)
        kind = request.WhichOneof("input")
        if kind is None:
            raise InvalidRequest("a text or a chat is needed", param="input")
        make_ids, param = (self._chat, chat.PARAM) if kind == "chat" else (self._text, PARAM)
        try:
            ids = await make_ids(request, model, tokens_max)
        except PromptTooLong as error:
            raise too_long(str(error), tokens_max, param) from error
        _check_count(len(ids), param)
        tokens = await self._off_loop(len(ids), lambda: model.tokenizer.spell(ids))
        return jobs_pb2.TokenizeResponse(token_ids=ids, tokens=tokens, max_tokens=tokens_max)

    async def detokenize(self, request: jobs_pb2.DetokenizeRequest) -> jobs_pb2.DetokenizeResponse:
        """Special tokens become text. Raises InvalidRequest for ids that no token has."""
        model = await self._parts.library.get(request.model)
        ids = list(request.token_ids)
        _check_count(len(ids), "token_ids")
        _check_known(ids, model)
        text = await self._off_loop(len(ids), lambda: model.tokenizer.decode(ids))
        return jobs_pb2.DetokenizeResponse(text=text)

    async def _off_loop(self, num_tokens: int, work: Callable[[], T]) -> T:
        """Few tokens are done faster than a thread is woken."""
        return work() if num_tokens < INLINE_TOKENS_MAX else await self._parts.pool.run(work)

    async def _chat(
        self, request: jobs_pb2.TokenizeRequest, model: ServedModel, tokens_max: int
    ) -> list[int]:
        (ids,) = await chat.prompts(
            request.chat,
            model,
            self._parts.pool,
            tokens_max,
            add_special_tokens=request.add_special_tokens,
        )
        return ids

    async def _text(
        self, request: jobs_pb2.TokenizeRequest, model: ServedModel, tokens_max: int
    ) -> list[int]:
        is_asked = request.HasField("add_special_tokens")
        add_special_tokens = request.add_special_tokens if is_asked else True

        def encode() -> list[int]:
            return model.tokenizer.encode(
                request.text, add_special_tokens=add_special_tokens, tokens_max=tokens_max
            )

        is_short = len(request.text) < INLINE_CHARACTERS_MAX
        return encode() if is_short else await self._parts.pool.run(encode, param=PARAM)


def _check_known(ids: list[int], model: ServedModel) -> None:
    if max(ids, default=0) < model.vocab_size:
        return
    index = next(i for i, token_id in enumerate(ids) if token_id >= model.vocab_size)
    raise InvalidRequest(
        f"token_ids[{index}] is {ids[index]}; the ids of {model.name} are 0 to "
        f"{model.vocab_size - 1}",
        param=f"token_ids[{index}]",
        reason="token_id_out_of_range",
    )


def _check_count(count: int, param: str) -> None:
    if count > TOKENS_MAX:
        raise InvalidRequest(
            f"{param} has {count} tokens; at most {TOKENS_MAX} can be handled in one request",
            param=param,
            reason="too_large",
        )
