"""The tools of a chat as they came over the wire, checked."""

import json
import re
from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2

TOOLS_MAX = 128
PARAMETERS_BYTES_MAX = 128 * 1024
TOOLS_BYTES_MAX = 1024 * 1024
JSON_DEPTH_MAX = 64
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FORCING = (jobs_pb2.TOOL_MODE_REQUIRED, jobs_pb2.TOOL_MODE_NAMED)


def mode_of(chat: jobs_pb2.ChatInput) -> jobs_pb2.ToolMode.ValueType:
    """Without tools nothing can be called; with them the model decides where nobody else did."""
    if not chat.tools:
        return jobs_pb2.TOOL_MODE_NONE
    return chat.tool_choice.mode or jobs_pb2.TOOL_MODE_AUTO


def is_forced(chat: jobs_pb2.ChatInput) -> bool:
    return chat.tool_choice.mode in _FORCING


def check_tools(chat: jobs_pb2.ChatInput) -> None:
    """Raises InvalidRequest for tools that are none and choices that cannot be met."""
    if len(chat.tools) > TOOLS_MAX:
        raise InvalidRequest(
            f"tools holds {len(chat.tools)} tools; at most {TOOLS_MAX} are allowed", param="tools"
        )
    size = sum(tool.ByteSize() for tool in chat.tools)
    if size > TOOLS_BYTES_MAX:
        raise InvalidRequest(
            f"tools takes {size} bytes; at most {TOOLS_BYTES_MAX} are allowed", param="tools"
        )
    names: set[str] = set()
    for i, tool in enumerate(chat.tools):
        _check_name(tool.name, f"tools[{i}].function.name", names)
        parameters_of(tool, f"tools[{i}].function.parameters")
    if is_forced(chat) and not names:
        raise InvalidRequest("tool_choice asks for a call, but there are no tools", param="tools")
    if chat.tool_choice.mode == jobs_pb2.TOOL_MODE_NAMED and chat.tool_choice.name not in names:
        raise InvalidRequest(
            f"tool_choice names {chat.tool_choice.name[:64]!r}, which is none of the tools",
            param="tool_choice.function.name",
        )


def parameters_of(tool: jobs_pb2.Tool, param: str) -> dict[str, Any]:
    """The JSON schema of its arguments; empty where it takes none."""
    if len(tool.parameters_json) > PARAMETERS_BYTES_MAX:
        raise InvalidRequest(
            f"{param} is larger than {PARAMETERS_BYTES_MAX} bytes of JSON", param=param
        )
    return json_object(tool.parameters_json, param)


def json_object(text: str, param: str) -> dict[str, Any]:
    """A JSON object, as text; empty where there is none."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} is no JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    if _is_deeper(value, JSON_DEPTH_MAX):
        raise InvalidRequest(f"{param} nests deeper than {JSON_DEPTH_MAX} levels", param=param)
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whoever reads it after us may do so level by level."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _check_name(name: str, param: str, names: set[str]) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{param} must be 1 to 64 letters, digits, underscores and dashes", param=param
        )
    if name in names:
        raise InvalidRequest(f"{param}: there is another tool named {name!r}", param=param)
    names.add(name)
