"""One compiled chat template: sandboxed, and given what transformers gives to templates."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from deepflow.core.model_folder import ModelFolderError
from deepflow.errors import InvalidRequest


class TemplateProgram:
    """Compiled once, run by any thread."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError  # late: only a process that serves chat needs it

        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelFolderError(f"the chat template does not compile: {error}") from error
        self._words = frozenset(re.findall(r"\w+", source))

    def mentions(self, word: str) -> bool:
        return word in self._words

    def run(self, variables: Mapping[str, Any]) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._template.render(variables)
        # A template is a program over the client's messages: these are all it can end in.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}",
                param="messages",
                reason="chat_template_error",
            ) from error
        return text


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
