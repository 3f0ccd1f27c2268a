"""A model's chat template: sandboxed, immutable, from the model folder only."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from deepflow.core.model_folder import ModelFolderError, read_json
from deepflow.errors import InvalidRequest

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_BYTES_MAX = 1_000_000
_DEFAULT = "default"


class ChatTemplate:
    """Compiled once, rendered by any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateError  # late: only a process that serves chat needs it

        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelFolderError(f"the chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, ready for the assistant's turn. Raises InvalidRequest for bad messages."""
        from jinja2 import TemplateError

        try:
            text: str = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        # A template is a program over the client's messages: these are all it can end in.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}",
                param="messages",
                reason="chat_template_error",
            ) from error
        return text


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja wins over tokenizer_config.json; None where the model has neither."""
    config = read_json(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    source = _template_source(folder, config)
    return ChatTemplate(source, _special_tokens(config)) if source else None


def _template_source(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / TEMPLATE_FILE
    if file.is_file():
        if file.stat().st_size > TEMPLATE_BYTES_MAX:
            raise ModelFolderError(f"{file}: larger than {TEMPLATE_BYTES_MAX} bytes")
        return file.read_text()
    value = config.get("chat_template") or ""
    if isinstance(value, list):
        named = {item["name"]: item["template"] for item in value}
        value = named.get(_DEFAULT) or next(iter(named.values()), "")
    if not isinstance(value, str):
        raise ModelFolderError(f"{folder / TOKENIZER_CONFIG}: chat_template is no text")
    return value


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, …: plain text, or an object that holds it."""
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _environment() -> Any:
    """As transformers builds it, so that templates written for that render the same here."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
