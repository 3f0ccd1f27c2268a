"""What an answer cost."""

from typing import Any

from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types


class UsageSum:
    """Sums the choices of one request; a prompt counts once, however many choices it has."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0

    def add(self, choice: int, usage: types.Usage) -> None:
        self.completion_tokens += usage.completion_tokens
        if choice % self._n == 0:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens

    def document(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


_REASONS: dict[int, str] = {
    types.FINISH_REASON_STOP: "stop",
    types.FINISH_REASON_LENGTH: "length",
    types.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def finish_reason(finished: jobs.ChoiceFinished) -> str | None:
    """OpenAI's word for it; None where the choice did not end well."""
    return _REASONS.get(finished.reason)
