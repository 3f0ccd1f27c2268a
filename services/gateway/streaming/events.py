"""Server-sent events of one request, as bytes. Pure; what repeats is encoded once."""

from typing import Any

import msgspec

from deepflow import __version__
from deepflow.errors import DeepFlowError, openai_error

FINGERPRINT = f"deepflow-{__version__}"
DONE = b"data: [DONE]\n\n"
END = b"}\n\n"

encode = msgspec.json.Encoder().encode


def error_event(error: DeepFlowError) -> bytes:
    return b"data: " + encode(openai_error(error)) + b"\n\n"


class EventFormat:
    """One route's chunk shape, filled with one request's names.

    A token's event is  prefix[choice] + JSON string + token_end. Everything that only some clients
    ask for is put together anew each time.
    """

    def __init__(
        self,
        *,
        is_chat: bool,
        answer_id: str,
        created: int,
        model: str,
        choices: int,
        include_usage: bool,
    ) -> None:
        self._is_chat = is_chat
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        self._names = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._names["system_fingerprint"] = FINGERPRINT
        self._head = b"data: " + encode(self._names)[:-1] + b',"choices":['
        # OpenAI: with include_usage every other chunk carries "usage": null.
        tail = b',"usage":null' if include_usage else b""
        opening = b'"delta":{"content":' if is_chat else b'"text":'
        self.prefixes = [self._head + b'{"index":%d,' % index + opening for index in range(choices)]
        self._text_end = (b"}" if is_chat else b"") + b',"logprobs":'
        self._choice_end = b"}]" + tail + END
        self.token_end = self._text_end + b'null,"finish_reason":null' + self._choice_end

    def role(self, choice: int) -> bytes:
        """The first chunk of a chat choice."""
        return (
            self._head
            + b'{"index":%d,"delta":{"role":"assistant","content":""}' % choice
            + b',"logprobs":null,"finish_reason":null'
            + self._choice_end
        )

    def token(self, choice: int, text: str) -> bytes:
        return self.prefixes[choice] + encode(text) + self.token_end

    def detailed(
        self, choice: int, text: str, logprobs: dict[str, Any] | None, **more: Any
    ) -> bytes:
        """Text with whatever else its choice carries."""
        details = b"".join(b',"%s":' % name.encode() + encode(it) for name, it in more.items())
        return (
            self.prefixes[choice]
            + encode(text)
            + self._text_end
            + encode(logprobs)
            + b',"finish_reason":null'
            + details
            + self._choice_end
        )

    def tool_call(
        self, choice: int, piece: dict[str, Any], logprobs: dict[str, Any] | None
    ) -> bytes:
        return (
            self._head
            + b'{"index":%d,"delta":{"tool_calls":[' % choice
            + encode(piece)
            + b']},"logprobs":'
            + encode(logprobs)
            + b',"finish_reason":null'
            + self._choice_end
        )

    def chat_prompt(self, token_ids: list[int]) -> bytes:
        """The prompt of a chat belongs to the whole answer, not to one choice."""
        head = encode({**self._names, "prompt_token_ids": token_ids})[:-1]
        return (
            b"data: "
            + head
            + b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":null'
            + self._choice_end
        )

    def finish(self, choice: int, reason: str) -> bytes:
        nothing = b'"delta":{}' if self._is_chat else b'"text":""'
        return (
            self._head
            + b'{"index":%d,' % choice
            + nothing
            + b',"logprobs":null,"finish_reason":"%s"' % reason.encode()
            + self._choice_end
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b'],"usage":' + encode(usage) + END
