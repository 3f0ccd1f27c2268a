"""An answer that is given in one piece, when every choice has ended."""

from collections.abc import Sequence
from typing import Any

from deepflow.errors import DeepFlowError
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.events import FINGERPRINT
from services.gateway.streaming.failure import failure_of
from services.gateway.streaming.usage import UsageSum, finish_reason


class WholeAnswer:
    def __init__(self, choices: int, usage: UsageSum, *, is_chat: bool, with_ids: bool) -> None:
        self.usage = usage
        self.failure: DeepFlowError | None = None
        self._is_chat = is_chat
        self._with_ids = with_ids
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._token_ids: list[list[int]] = [[] for _ in range(choices)]
        self._reasons: list[str | None] = [None] * choices

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        self._texts[choice] += texts
        if self._with_ids:
            self._token_ids[choice] += token_ids

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
        return True

    def document(self, answer_id: str, created: int, model: str) -> dict[str, Any]:
        return {
            "id": answer_id,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._choice(index) for index in range(len(self._texts))],
            "usage": self.usage.document(),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._texts[index])
        choice: dict[str, Any] = {"index": index}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": self._reasons[index]}
        if self._with_ids:
            choice["token_ids"] = self._token_ids[index]
        return choice
