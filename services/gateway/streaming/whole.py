"""An answer that is given in one piece, when every choice has ended."""

from collections.abc import Sequence
from typing import Any

from deepflow.errors import DeepFlowError
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.calls import Calls
from services.gateway.streaming.events import FINGERPRINT
from services.gateway.streaming.failure import failure_of
from services.gateway.streaming.logprobs import prompt_document
from services.gateway.streaming.usage import UsageSum, finish_reason
from services.gateway.streaming.wanted import Wanted


class WholeAnswer:
    def __init__(self, choices: int, usage: UsageSum, wanted: Wanted) -> None:
        self.usage = usage
        self.failure: DeepFlowError | None = None
        self._wanted = wanted
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._reasons: list[str | None] = [None] * choices
        self._calls: dict[int, Calls] = {}
        # What was asked about each choice's prompt, in the words of the answer.
        self._prompts: list[dict[str, Any]] = [{} for _ in range(choices)]

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        self._texts[choice] += texts

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        """Nobody asked."""

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        wanted, choice = self._wanted, prompt.choice_index
        if wanted.echo:
            self._texts[choice].append(prompt.text)
        if wanted.prompt_logprobs is not None:
            document = prompt_document(prompt, wanted.prompt_logprobs)
            self._prompts[choice]["prompt_logprobs"] = document
        if wanted.token_ids:
            self._prompts[choice]["prompt_token_ids"] = list(prompt.token_ids)

    def tool_call(self, delta: jobs.ToolCallDelta) -> None:
        self._calls.setdefault(delta.choice_index, Calls()).add(delta)

    def finished(self, choice: jobs.ChoiceFinished) -> None:
        index = choice.choice_index
        self.usage.add(index, choice.usage)
        reason = finish_reason(choice)
        if reason is None:
            self.failure = self.failure or failure_of(choice)
            return
        self._texts[index].append(choice.text_tail)
        self._reasons[index] = reason

    def flush(self) -> bool:
        return self.failure is None

    def document(self, answer_id: str, created: int, model: str) -> dict[str, Any]:
        document = {
            "id": answer_id,
            "object": "chat.completion" if self._wanted.is_chat else "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._choice(index) for index in range(len(self._texts))],
            "usage": self.usage.document(),
        }
        if self._wanted.is_chat:
            # All choices of a chat have one prompt.
            document |= self._prompts[0]
        return document

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._texts[index])
        choice: dict[str, Any] = {"index": index}
        if self._wanted.is_chat:
            choice["message"] = self._message(index, text)
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": self._reasons[index]}
        if not self._wanted.is_chat:
            choice |= self._prompts[index]
        return choice

    def _message(self, index: int, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if index in self._calls:
            # Where nothing but calls was said there is no content.
            message["content"] = text or None
            message["tool_calls"] = self._calls[index].document()
        return message
