"""A model's chat template: sandboxed, immutable, from the model folder only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError, read_json
from deepflow.errors import InvalidRequest
from services.job_executor.tokenizer.template_program import TemplateFault, TemplateProgram

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_BYTES_MAX = 1_000_000
_DEFAULT, _TOOL_USE = "default", "tool_use"

ADDS_TURN, CONTINUES = "add_generation_prompt", "continue_final_message"
MESSAGES_PARAM, ARGUMENTS_PARAM = "messages", "chat_template_kwargs"
# What a template takes from us alone.
RESERVED = frozenset(("messages", "tools", "raise_exception", "strftime_now", "self"))


class ChatTemplate:
    """Compiled once, rendered by any thread."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, tools_source: str = ""
    ) -> None:
        """`tools_source` is the template for chats with tools, where the model has one apart."""
        self.tools_source = tools_source or source
        self._special_tokens = dict(special_tokens)
        self._plain = TemplateProgram(source)
        self._with_tools = TemplateProgram(tools_source) if tools_source else self._plain

    @property
    def knows_tools(self) -> bool:
        """Whether it would show a model the tools of a chat."""
        return self._with_tools.mentions("tools")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, ready for the assistant's turn. Raises InvalidRequest for bad messages.

        `arguments` are further variables; two of them mean what they mean to transformers:
        add_generation_prompt and continue_final_message.
        """
        variables = dict(arguments or {})
        self._check_arguments(variables)
        goes_on = _flag(variables, CONTINUES, default=False)
        adds_turn = _flag(variables, ADDS_TURN, default=not goes_on)
        if goes_on and adds_turn:
            raise _bad_argument(CONTINUES, "cannot be true beside add_generation_prompt")
        program = self._with_tools if tools else self._plain
        roles = messages if program.mentions("developer") else [_known_role(m) for m in messages]
        own = {
            **self._special_tokens,
            "messages": roles,
            "tools": tools or None,
            ADDS_TURN: adds_turn,
        }
        text = _run(program, variables, own)
        return _cut_behind_last(text, messages) if goes_on else text

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        for name in arguments:
            if name in RESERVED or name.endswith("_token") or name in self._special_tokens:
                raise _bad_argument(name, "is not yours to set: it belongs to the chat template")


def _run(program: TemplateProgram, arguments: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Raises InvalidRequest, about the arguments unless it would end the same without them."""
    try:
        return program.run({"documents": None, **arguments, **own})
    except TemplateFault as fault:
        is_theirs = bool(arguments) and _fault_of(program, own) != str(fault)
        param = ARGUMENTS_PARAM if is_theirs else MESSAGES_PARAM
        raise InvalidRequest(
            f"the model's chat template refuses these {param}: {fault}",
            param=param,
            reason="chat_template_error",
        ) from fault


def _fault_of(program: TemplateProgram, own: Mapping[str, Any]) -> str:
    try:
        program.run({"documents": None, **own})
    except TemplateFault as fault:
        return str(fault)
    return ""


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja wins over tokenizer_config.json; None where the model has neither."""
    config = read_json(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    source, tools_source = _template_sources(folder, config)
    if not source:
        return None
    return ChatTemplate(source, _special_tokens(config), tools_source=tools_source)


def _template_sources(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The template, and the one for chats with tools where that is another one."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        if file.stat().st_size > TEMPLATE_BYTES_MAX:
            raise ModelFolderError(f"{file}: larger than {TEMPLATE_BYTES_MAX} bytes")
        return _decoded(file), ""
    value = config.get("chat_template") or ""
    named: dict[str, Any] = {}
    if isinstance(value, list):
        try:
            named = {item["name"]: item["template"] for item in value}
        except (TypeError, KeyError) as error:
            where = folder / TOKENIZER_CONFIG
            raise ModelFolderError(f"{where}: chat_template needs name and template") from error
        value = named.get(_DEFAULT) or next(iter(named.values()), "")
    sources = (value, named.get(_TOOL_USE, ""))
    if not all(isinstance(source, str) for source in sources):
        raise ModelFolderError(f"{folder / TOKENIZER_CONFIG}: chat_template is no text")
    return sources


def _decoded(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{file}: not valid UTF-8") from error


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, …: plain text, or an object that holds it."""
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _known_role(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """What OpenAI calls the developer's message is a system message to everybody else."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _cut_behind_last(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Without what the template writes behind the last message, so that the model goes on in it."""
    last = messages[-1].get("content") or ""
    start = text.rfind(last.strip())
    if not last.strip() or start < 0:
        raise _bad_argument(CONTINUES, "needs a last message whose text the template shows")
    # Some templates strip messages; the blanks of one that does not belong to it.
    kept = last.lstrip()
    return text[: start + len(kept if text.startswith(kept, start) else last.strip())]


def _flag(arguments: dict[str, Any], name: str, *, default: bool) -> bool:
    value = arguments.pop(name, default)
    if not isinstance(value, bool):
        raise _bad_argument(name, "must be true or false")
    return value


def _bad_argument(name: str, problem: str) -> InvalidRequest:
    param = f"{ARGUMENTS_PARAM}.{name[:64]}"
    return InvalidRequest(f"{param} {problem}", param=param)
