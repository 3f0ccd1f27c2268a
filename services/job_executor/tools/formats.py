"""The formats by name: how calls are written, read, and recognised in a chat template."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from deepflow.core.tool_formats import HERMES, LLAMA3, TOOL_FORMATS
from services.job_executor.tools import hermes, llama3
from services.job_executor.tools.hermes import HermesParser
from services.job_executor.tools.llama3 import Llama3Parser
from services.job_executor.tools.parser import CallParser


@dataclass(frozen=True, slots=True)
class Layout:
    """A call as its parts: tags may be single tokens of the vocabulary, the rest is text."""

    open_tag: str
    before_name: str
    before_arguments: str
    end: str
    close_tag: str
    between_calls: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: str
    tags: tuple[str, ...]  # seen by the parser even where they are special tokens
    layout: Layout
    # A template that speaks of all of these writes calls so; others share some of the tags.
    marks: tuple[re.Pattern[str], ...]
    new_parser: Callable[[Collection[str]], CallParser]


_FORMATS = {
    HERMES: ToolFormat(
        name=HERMES,
        tags=(hermes.OPEN, hermes.CLOSE),
        layout=Layout(
            open_tag=hermes.OPEN,
            before_name='\n{"name": "',
            before_arguments='", "arguments": ',
            end="}\n",
            close_tag=hermes.CLOSE,
            between_calls="\n",
        ),
        marks=(re.compile(hermes.OPEN), re.compile(r'"arguments\\?"')),
        new_parser=lambda names: HermesParser(),
    ),
    LLAMA3: ToolFormat(
        name=LLAMA3,
        tags=(llama3.TAG,),
        layout=Layout(
            open_tag="",
            before_name='{"name": "',
            before_arguments='", "parameters": ',
            end="}",
            close_tag="",
            between_calls=f"{llama3.SEPARATOR} ",
        ),
        marks=(re.compile(r"<\|python_tag\|>|\bipython\b"), re.compile(r'"parameters\\?"')),
        new_parser=Llama3Parser,
    ),
}
assert tuple(_FORMATS) == TOOL_FORMATS


def format_of(chosen: str, template_source: str) -> ToolFormat | None:
    """The one that was chosen for a deployment, else the one that its template speaks of."""
    if chosen:
        return _FORMATS.get(chosen)
    for form in _FORMATS.values():
        if all(mark.search(template_source) for mark in form.marks):
            return form
    return None
