"""One compiled chat template."""

import re
from collections.abc import Mapping
from typing import Any

from deepflow.core.model_folder import ModelFolderError
from services.job_executor.tokenizer.template_limits import TEXT_LENGTH_MAX

# A template is a program over the client's messages: beside its own errors, all it can end in.
_ENDINGS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class TemplateFault(Exception):
    """The template ended in something else than a text."""


class TemplateProgram:
    """Compiled once, run by any thread."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError  # late: only a process that serves chat needs it

        from services.job_executor.tokenizer.template_environment import TemplateEnvironment

        try:
            self._template = TemplateEnvironment().from_string(source)
        except TemplateError as error:
            raise ModelFolderError(f"the chat template does not compile: {error}") from error
        self._words = frozenset(re.findall(r"\w+", source))

    def mentions(self, word: str) -> bool:
        return word in self._words

    def run(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateFault."""
        from jinja2 import TemplateError

        pieces, length = [], 0
        try:
            for piece in self._template.generate(variables):
                length += len(piece)
                if length > TEXT_LENGTH_MAX:
                    raise OverflowError(f"the prompt is over {TEXT_LENGTH_MAX} characters")
                pieces.append(piece)
        except (TemplateError, *_ENDINGS) as error:
            raise TemplateFault(str(error)) from error
        return "".join(pieces)
