"""Every table of fields by the name of its section, and docs/api.md made from them.

`python -m services.gateway.schema.tables` writes the tables between their marks in docs/api.md.
"""

import re
from pathlib import Path
from typing import Any

import msgspec

from services.gateway.schema.admin import COUNT, DEPLOYMENT, REPLICAS
from services.gateway.schema.chat import CHAT
from services.gateway.schema.completion import COMPLETION
from services.gateway.schema.context_caches import CONTEXT_CACHE
from services.gateway.schema.embedding import EMBEDDING
from services.gateway.schema.fields import Fields, Honoured
from services.gateway.schema.grammar import JSON_SCHEMA, STRUCTURED_OUTPUTS
from services.gateway.schema.messages import MESSAGE
from services.gateway.schema.shared import STREAM_OPTIONS
from services.gateway.schema.tokens import DETOKENIZE, TOKENIZE
from services.gateway.schema.tools import CALL, FUNCTION

TABLES: dict[str, Fields] = {
    "chat": CHAT,
    "message": MESSAGE,
    "tool_call": CALL,
    "function": FUNCTION,
    "json_schema": JSON_SCHEMA,
    "structured_outputs": STRUCTURED_OUTPUTS,
    "stream_options": STREAM_OPTIONS,
    "completion": COMPLETION,
    "embedding": EMBEDDING,
    "tokenize": TOKENIZE,
    "detokenize": DETOKENIZE,
    "context_cache": CONTEXT_CACHE,
    "deployment": DEPLOYMENT,
    "replicas": REPLICAS,
    "count": COUNT,
}

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
_SECTION = re.compile(r"(<!-- fields: (\w+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every marked section made anew."""
    return _SECTION.sub(lambda m: f"{m[1]}\n{_markdown(TABLES[m[2]])}\n{m[3]}", page)


def sections(page: str) -> list[str]:
    return [match[2] for match in _SECTION.finditer(page)]


def shape_word(shape: dict[str, Any]) -> str:
    """A JSON schema in a few words; the whole of it is in /openapi.json."""
    if "const" in shape:
        return _json(shape["const"])
    if "enum" in shape:
        return ", ".join(map(_json, shape["enum"]))
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(map(shape_word, shape["anyOf"])))
    kind: str = shape["type"]
    if kind == "array":
        return f"array of {shape_word(shape['items'])}"
    return kind + _bounds(shape)


def _bounds(shape: dict[str, Any]) -> str:
    low, above, high = (shape.get(k) for k in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        return f" above {_number(above)} and at most {_number(high)}"
    if low is None:
        return ""
    return f" from {_number(low)}" if high is None else f" {_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    """Whole ones in full: 3600000 is no 3.6e+06."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _markdown(fields: Fields) -> str:
    lines = ["| field | type | |", "|---|---|---|", *map(_honoured, fields.honoured)]
    if fields.inert:
        lines += ["", "Accepted without effect:", "", "| field | values | |", "|---|---|---|"]
        for inert in fields.inert:
            allowed = ", ".join(f"`{_json(value)}`" for value in inert.values) or "any"
            lines.append(f"| `{inert.name}` | {allowed} | {inert.meaning} |")
    if fields.refused:
        refused = [f"`{name}`{_instead(fields, name)}" for name in sorted(fields.refused)]
        lines += ["", f"Refused by name: {', '.join(refused)}."]
    return "\n".join(lines) + "\n"


def _honoured(field: Honoured) -> str:
    default = f", default `{_json(field.shape['default'])}`" if "default" in field.shape else ""
    return f"| `{field.name}` | {shape_word(field.shape)}{default} | {field.meaning} |"


def _instead(fields: Fields, name: str) -> str:
    return f" ({fields.instead[name]})" if name in fields.instead else ""


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
