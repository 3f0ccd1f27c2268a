"""Tool calls as OpenAI words them, whole and in pieces."""

from typing import Any

from deepflow.v1 import jobs_pb2 as jobs


def piece(delta: jobs.ToolCallDelta) -> dict[str, Any]:
    """One element of delta.tool_calls; the first piece of a call names it."""
    if not delta.id and not delta.name:
        return {"index": delta.call_index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.call_index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


class Calls:
    """The calls of one choice, put together."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}
        self._arguments: dict[int, list[str]] = {}

    def add(self, delta: jobs.ToolCallDelta) -> None:
        call = self._calls.setdefault(delta.call_index, {"id": "", "name": ""})
        call["id"] = call["id"] or delta.id
        call["name"] = call["name"] or delta.name
        self._arguments.setdefault(delta.call_index, []).append(delta.arguments)

    def document(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(self._arguments[index])},
            }
            for index, call in sorted(self._calls.items())
        ]
