"""A checked request: what the client asked for, in the words of the job contract."""

from typing import Any

import msgspec

from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.schema import chat, completion, fields, values
from services.gateway.schema.grammar import take_grammar
from services.gateway.schema.limits import Limits
from services.gateway.schema.sampling import check_sampling_ids, take_sampling
from services.gateway.schema.tools import FORCING, give_tools


class GenerationRequest(msgspec.Struct, frozen=True):
    model: str
    work: jobs.ChatInput | jobs.CompletionInput
    n: int = 1
    # All but the seed, which is drawn for every job that brings none.
    sampling: types.SamplingParams = msgspec.field(default_factory=types.SamplingParams)
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    echo: bool = False
    # What the answer shows; an echo with logprobs makes the job ask for more.
    prompt_logprobs: int | None = None
    user: str = ""
    context_cache_id: str = ""

    @property
    def is_chat(self) -> bool:
        return isinstance(self.work, jobs.ChatInput)

    @property
    def prompts(self) -> int:
        return len(self.work.prompts) if isinstance(self.work, jobs.CompletionInput) else 1

    @property
    def choices(self) -> int:
        return self.prompts * self.n

    @property
    def logprobs(self) -> int | None:
        return self.sampling.logprobs if self.sampling.HasField("logprobs") else None

    @property
    def return_prompt(self) -> bool:
        return self.echo or self.return_token_ids or self.prompt_logprobs is not None

    def check_ids(self, vocab_size: int) -> None:
        """Every token id of the request must name a token of the model."""
        if isinstance(self.work, jobs.CompletionInput):
            completion.check_token_ids(self.work, vocab_size)
        check_sampling_ids(self.sampling, vocab_size)


def read_chat(document: dict[str, Any], limits: Limits) -> GenerationRequest:
    read = chat.CHAT.read(document, limits)
    chat.settle(read)
    work: jobs.ChatInput = read.pop("messages")
    give_tools(work, read)
    request = _build(read, work, limits)
    if request.sampling.HasField("grammar") and work.tool_choice.mode in FORCING:
        field = request.sampling.grammar.param.split(".", 1)[0]
        raise fields.conflict("tool_choice", f"'tool_choice' asks for a call, '{field}' for none")
    return request


def read_completion(document: dict[str, Any], limits: Limits) -> GenerationRequest:
    read = completion.COMPLETION.read(document, limits)
    completion.settle(read)
    return _build(read, read.pop("prompt"), limits)


def _build(
    read: dict[str, Any], work: jobs.ChatInput | jobs.CompletionInput, limits: Limits
) -> GenerationRequest:
    fields.require(read, "", model="the name of a deployment; see /v1/models")
    include_usage = _include_usage(read)
    _check_empty_answer(read)
    prompt_logprobs = read.get("prompt_logprobs")
    if prompt_logprobs is not None and read.get("stream", False):
        raise fields.conflict("prompt_logprobs", "'prompt_logprobs' is not allowed with stream")
    request = GenerationRequest(
        work=work,
        include_usage=include_usage,
        prompt_logprobs=prompt_logprobs,
        sampling=_sampling(read),
        **read,
    )
    if request.choices > limits.choices:
        wanted = f"such that prompts * n is at most {limits.choices}"
        raise values.out_of_range("n", wanted, request.n)
    return request


def _sampling(read: dict[str, Any]) -> types.SamplingParams:
    grammar = take_grammar(read)
    sampling = take_sampling(read)
    if grammar is not None:
        sampling.grammar.CopyFrom(grammar)
    if read.get("echo", False) and sampling.HasField("logprobs"):
        # The prompt's tokens come with the answer's, and look the same.
        sampling.prompt_logprobs = max(sampling.prompt_logprobs, sampling.logprobs)
    return sampling


def _include_usage(read: dict[str, Any]) -> bool:
    options = read.pop("stream_options", None)
    if options is not None and not read.get("stream", False):
        raise fields.conflict(
            "stream_options", "'stream_options' is only allowed with 'stream': true"
        )
    return bool(options and options.get("include_usage", False))


def _check_empty_answer(read: dict[str, Any]) -> None:
    """Nothing to draw and nothing to show of the prompt is no request."""
    if read.get("max_tokens") == 0 and not (read.get("echo") or "prompt_logprobs" in read):
        raise values.out_of_range("max_tokens", "at least 1 without echo and prompt_logprobs", 0)
