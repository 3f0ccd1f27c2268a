"""/docs: one page for people, made from the same tables that validate."""

import functools
from html import escape
from importlib.resources import files
from string import Template

import msgspec

from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.tables import TABLES


@functools.cache
def docs_page() -> str:
    page = Template(files(__package__).joinpath("docs.html").read_text("utf-8"))
    return page.substitute({name: _tables(fields) for name, fields in TABLES.items()})


def _tables(fields: Fields) -> str:
    honoured = "".join(map(_honoured, fields.honoured))
    page = f"<table><tr><th>Honoured</th><th>Type</th><th>Meaning</th></tr>{honoured}</table>"
    if fields.inert:
        inert = "".join(map(_inert, fields.inert))
        page += (
            "<table><tr><th>Accepted, without effect</th><th>Values</th><th></th></tr>"
            f"{inert}</table>"
        )
    if fields.refused:
        refused = ", ".join(_refused(fields, name) for name in sorted(fields.refused))
        page += f"<p>Refused by name: {refused}.</p>"
    return page


def _honoured(field: Honoured) -> str:
    return _row(field.name, _json(_without_depth(field.shape)), field.meaning)


def _inert(field: Inert) -> str:
    return _row(field.name, " or ".join(map(_json, field.values)) or "any", field.meaning)


def _refused(fields: Fields, name: str) -> str:
    instead = f" ({escape(fields.instead[name])})" if name in fields.instead else ""
    return f"<code>{escape(name)}</code>{instead}"


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
