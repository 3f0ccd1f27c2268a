"""One compiled chat template: sandboxed, and given what transformers gives to templates."""

import json
import re
from collections.abc import Mapping, Sized
from datetime import datetime
from typing import Any, NoReturn

from deepflow.core.model_folder import ModelFolderError
from deepflow.errors import InvalidRequest

# A template is a program over the client's messages: beside its own errors, all it can end in.
_ENDINGS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
# How long a repeated text, and how large a number, a product or power may become: both factors
# can be a client's.
PRODUCT_LENGTH_MAX = 1_000_000
PRODUCT_BITS_MAX = 4096


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
        except (TemplateError, *_ENDINGS) as error:
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

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Raises OverflowError before anything large is made: one step of a template, many bytes."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length()
        if bits > PRODUCT_BITS_MAX:
            raise OverflowError("a number becomes too large")
    for repeated, times in ((left, right), (right, left)):
        is_repetition = isinstance(repeated, Sized) and isinstance(times, int)
        if is_repetition and len(repeated) * times > PRODUCT_LENGTH_MAX:
            raise OverflowError("a text or list becomes too long")


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
