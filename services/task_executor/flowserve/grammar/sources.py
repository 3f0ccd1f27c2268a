"""From a grammar as it is asked for to what llguidance compiles."""

import json
from typing import TYPE_CHECKING

from deepflow.core.sampling import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Between the parts of a document: nothing, one blank, or a new line and its indentation. More
# would let a model write blanks for ever.
WHITESPACE = r" |\r?\n[ \t]{0,40}"


class GrammarError(ValueError):
    """A sentence for the caller about a grammar that cannot be followed."""


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
