"""A chat: one prompt, made by the model's own template."""

from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.tokenizer.chat_template import ARGUMENTS_PARAM, ChatTemplate
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.pool import WorkPool
from services.job_executor.tools.request import json_object, mode_of, parameters_of

PARAM = "messages"
ARGUMENTS_BYTES_MAX = 64 * 1024


async def prompts(
    chat: jobs_pb2.ChatInput,
    model: ServedModel,
    pool: WorkPool,
    tokens_max: int,
    *,
    add_special_tokens: bool = False,
) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequest for what the template refuses."""
    template = model.tokenizer.template
    if template is None:
        raise InvalidRequest(
            f"The model `{model.name}` has no chat template; use /v1/completions with a prompt.",
            param="model",
            reason="chat_template_missing",
        )
    if not chat.messages:
        raise InvalidRequest("messages must hold at least one message", param=PARAM)

    def render_and_encode() -> list[int]:
        # A template writes the special tokens itself: adding them doubles the first as a rule.
        text = _render(template, chat)
        return model.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, tokens_max=tokens_max
        )

    return [await pool.run(render_and_encode, param=PARAM)]


def _render(template: ChatTemplate, chat: jobs_pb2.ChatInput) -> str:
    messages = [_as_dict(message) for message in chat.messages]
    tools = None
    if mode_of(chat) != jobs_pb2.TOOL_MODE_NONE:
        _require_tools(template)
        tools = [_tool_as_dict(tool, f"tools[{i}]") for i, tool in enumerate(chat.tools)]
    return template.render(messages, tools, _arguments(chat.template_arguments_json))


def _require_tools(template: ChatTemplate) -> None:
    if not template.knows_tools:
        raise InvalidRequest(
            "the model's chat template does not show tools to the model; send none, "
            "or tool_choice 'none'",
            param="tools",
            reason="tools_unsupported",
        )


def _arguments(text: str) -> dict[str, Any]:
    if len(text) > ARGUMENTS_BYTES_MAX:
        raise InvalidRequest(
            f"{ARGUMENTS_PARAM} is larger than {ARGUMENTS_BYTES_MAX} bytes", param=ARGUMENTS_PARAM
        )
    return json_object(text, ARGUMENTS_PARAM)


def _as_dict(message: jobs_pb2.ChatMessage) -> dict[str, Any]:
    """As templates written for transformers expect it."""
    has_content = message.HasField("content") or not message.tool_calls
    fields: dict[str, Any] = {
        "role": message.role,
        "content": message.content if has_content else None,
    }
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [_call_as_dict(call) for call in message.tool_calls]
    return fields


def _call_as_dict(call: jobs_pb2.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _call_arguments(call.arguments_json)}
    return {"id": call.id, "type": "function", "function": function}


def _call_arguments(text: str) -> dict[str, Any] | str:
    """An object where the model wrote one; what else it wrote is shown to it as it was."""
    try:
        return json_object(text, "arguments")
    except InvalidRequest:
        return text


def _tool_as_dict(tool: jobs_pb2.Tool, param: str) -> dict[str, Any]:
    parameters = parameters_of(tool, f"{param}.function.parameters")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
