"""A checked request: what the client asked for, in the words of the job contract."""

from typing import Any

import msgspec

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import chat, completion, values
from services.gateway.schema.limits import Limits


class GenerationRequest(msgspec.Struct, frozen=True):
    model: str
    work: jobs.ChatInput | jobs.CompletionInput
    n: int = 1
    max_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = []
    stream: bool = False
    include_usage: bool = False
    ignore_eos: bool = False
    return_token_ids: bool = False
    user: str = ""

    @property
    def is_chat(self) -> bool:
        return isinstance(self.work, jobs.ChatInput)

    @property
    def prompts(self) -> int:
        return len(self.work.prompts) if isinstance(self.work, jobs.CompletionInput) else 1

    @property
    def choices(self) -> int:
        return self.prompts * self.n


def read_chat(document: dict[str, Any], limits: Limits) -> GenerationRequest:
    read = chat.CHAT.read(document, limits)
    chat.check(read)
    max_tokens = read.pop("max_completion_tokens", None)
    if max_tokens is not None:
        read["max_tokens"] = max_tokens
    return _build(read, read.pop("messages"), limits)


def read_completion(document: dict[str, Any], limits: Limits) -> GenerationRequest:
    read = completion.COMPLETION.read(document, limits)
    completion.check(read)
    return _build(read, read.pop("prompt"), limits)


def _build(
    read: dict[str, Any], work: jobs.ChatInput | jobs.CompletionInput, limits: Limits
) -> GenerationRequest:
    if "model" not in read:
        raise values.missing("model", "the name of a deployment; see /v1/models")
    options = read.pop("stream_options", None)
    if options is not None and not read.get("stream", False):
        raise InvalidRequest(
            "'stream_options' is only allowed with 'stream': true",
            param="stream_options",
            reason="conflicting_fields",
        )
    include_usage = bool(options and options.get("include_usage", False))
    request = GenerationRequest(work=work, include_usage=include_usage, **read)
    if request.choices > limits.choices:
        wanted = f"such that prompts * n is at most {limits.choices}"
        raise values.out_of_range("n", wanted, request.n)
    return request
