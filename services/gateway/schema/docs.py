"""/docs: one page for people, made from the same tables that validate."""

import functools
from html import escape
from importlib.resources import files
from string import Template

import msgspec

from services.gateway.schema.chat import CHAT, MESSAGE
from services.gateway.schema.completion import COMPLETION
from services.gateway.schema.fields import Fields, Honoured, Inert


@functools.cache
def docs_page() -> str:
    page = Template(files(__package__).joinpath("docs.html").read_text("utf-8"))
    return page.substitute(
        chat=_tables(CHAT), message=_tables(MESSAGE), completion=_tables(COMPLETION)
    )


def _tables(fields: Fields) -> str:
    honoured = "".join(map(_honoured, fields.honoured))
    inert = "".join(map(_inert, fields.inert))
    refused = ", ".join(f"<code>{escape(name)}</code>" for name in sorted(fields.refused))
    return (
        f"<table><tr><th>Honoured</th><th>Type</th><th>Meaning</th></tr>{honoured}</table>"
        f"<table><tr><th>Accepted, without effect</th><th>Values</th><th></th></tr>{inert}</table>"
        f"<p>Refused by name: {refused}.</p>"
    )


def _honoured(field: Honoured) -> str:
    return _row(field.name, _json(_without_depth(field.shape)), field.meaning)


def _inert(field: Inert) -> str:
    return _row(field.name, " or ".join(map(_json, field.values)) or "any", field.meaning)


def _row(name: str, kind: str, meaning: str) -> str:
    return (
        f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(kind)}</code></td>"
        f"<td>{escape(meaning)}</td></tr>"
    )


def _without_depth(shape: dict[str, object]) -> dict[str, object]:
    """Nested schemas have tables of their own, and are whole in /openapi.json."""
    return {k: v for k, v in shape.items() if k not in ("items", "properties")}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
