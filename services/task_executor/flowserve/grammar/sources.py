"""From a grammar as it is asked for to what llguidance compiles."""

import json
from typing import TYPE_CHECKING

import msgspec

from deepflow.core.sampling import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Between the parts of a document: nothing, one blank, or a new line and its indentation. More
# would let a model write blanks for ever.
WHITESPACE = r" |\r?\n[ \t]{0,40}"


EMBEDDED_SCHEMA = "%json"


class GrammarError(ValueError):
    """A sentence for the caller about a grammar that cannot be followed.

    `part` is which of the schemas inside the grammar is at fault, where it is one of them.
    """

    def __init__(self, fault: str, part: int | None = None) -> None:
        super().__init__(fault)
        self.part = part


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """A GrammarError on its way from one process to another; without a fault there is none."""

    fault: str = ""
    part: int | None = None

    def require_none(self) -> None:
        if self.fault:
            raise GrammarError(self.fault, self.part)


def embedded_schemas(grammar: Grammar) -> dict[int, str]:
    """The texts of the schemas inside a grammar: its parts, numbered from the first.

    Without those that are spread over lines, which are left to the compiler and its limits.
    """
    if grammar.kind != "lark":
        return {}
    lines = (line.partition(EMBEDDED_SCHEMA) for line in grammar.source.splitlines())
    texts = (schema.strip() for _, is_schema, schema in lines if is_schema)
    return {part: text for part, text in enumerate(texts) if _is_json(text)}


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def to_llguidance(grammar: Grammar) -> str:
    """Raises GrammarError."""
    # Late: an engine that is never asked for a grammar does not need it.
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            return _schema(grammar.source)
        case "regex":
            return LLMatcher.grammar_from_lark(f"start: {_expression(grammar.source)}")
        case "choice":
            # One terminal: as rules of their own the choices would be a lexeme each.
            words = " | ".join(map(_literal, json.loads(grammar.source)))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}")
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.source)
    raise GrammarError(f"a grammar of the kind {grammar.kind!r} is not known")


def _literal(text: str) -> str:
    """As a string; where that cannot be written, as an expression of the characters' numbers."""
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False)
    return "/" + "".join(rf"\x{{{ord(character):x}}}" for character in text) + "/"


def _expression(source: str) -> str:
    r"""Classes such as \d are of ASCII: who asks for digits means 0 to 9."""
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(source, 'dws')}/" if source else '""'


def _schema(source: str) -> str:
    from llguidance import LLMatcher

    # Only defaults: `x-guidance` inside the schema may say otherwise.
    defaults: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
    try:
        return LLMatcher.grammar_from_json_schema(source, defaults=defaults)
    except ValueError as error:
        raise GrammarError(f"the JSON schema cannot be read: {error}") from error
