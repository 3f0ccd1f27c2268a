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

    A token's event is  prefix[choice] + JSON string + suffix  where the suffix is `token_end`, or
    `ids_begin` + ids + `ids_end` for a client that asked for token ids.
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
        head = {"id": answer_id, "object": kind, "created": created, "model": model}
        head["system_fingerprint"] = FINGERPRINT
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        # OpenAI: with include_usage every other chunk carries "usage": null.
        tail = b',"usage":null' if include_usage else b""
        opening = b'"delta":{"content":' if is_chat else b'"text":'
        self.prefixes = [self._head + b'{"index":%d,' % index + opening for index in range(choices)]
        closing = b"}" if is_chat else b""
        self._choice_end = b"}]" + tail + END
        end = closing + b',"logprobs":null,"finish_reason":null'
        self.token_end = end + self._choice_end
        self.ids_begin = end + b',"token_ids":'
        self.ids_end = self._choice_end

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

    def token_with_ids(self, choice: int, text: str, token_ids: list[int]) -> bytes:
        ids = self.ids_begin + encode(token_ids) + self.ids_end
        return self.prefixes[choice] + encode(text) + ids

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
