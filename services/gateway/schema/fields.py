"""What a request field can be to us: honoured, accepted and inert, or refused by name.

The tables are plain data. Validation walks them, the documentation prints them. `null` is always
the same as leaving a field out.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from deepflow.errors import InvalidRequest
from services.gateway.schema import values
from services.gateway.schema.limits import Limits

Reader = Callable[[Any, str, Limits], Any]


class Honoured(NamedTuple):
    """`read` answers the checked value; `shape` is its JSON schema."""

    name: str
    read: Reader
    shape: dict[str, Any]
    meaning: str


class Inert(NamedTuple):
    """Taken and without effect, for these values; `()` takes any value."""

    name: str
    values: tuple[Any, ...]
    meaning: str


class Fields:
    """All that one route knows about the fields of one object."""

    __slots__ = ("_inert", "_readers", "honoured", "inert", "instead", "refused")

    def __init__(
        self,
        *,
        honoured: tuple[Honoured, ...],
        inert: tuple[Inert, ...] = (),
        refused: tuple[str, ...] = (),
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self.honoured = honoured
        self.inert = inert
        self.refused = refused
        # What to send in the place of a refused field, where there is something.
        self.instead = instead or {}
        self._readers = {field.name: field.read for field in honoured}
        self._inert = {field.name: field for field in inert}

    def read(self, document: dict[str, Any], limits: Limits, at: str = "") -> dict[str, Any]:
        """The honoured fields that are present, checked; raises for every other kind."""
        readers, inert = self._readers, self._inert
        result = {}
        for name, value in document.items():
            if name in readers:
                if value is not None:
                    result[name] = readers[name](value, at + name, limits)
            elif name in inert:
                _check_inert(inert[name], value, at)
            elif name not in self.refused:
                raise self._unknown(name, at)
            elif value is not None:
                advice = self.instead.get(name, "leave it out")
                raise unsupported(at + name, f"'{at}{name}' is not supported; {advice}")
        return result

    def _unknown(self, name: str, at: str) -> InvalidRequest:
        known = [*self._readers, *self._inert]
        shown = name if len(name) <= 64 else name[:61] + "..."
        nearest = difflib.get_close_matches(shown, known, n=1)
        hint = f"; did you mean '{at}{nearest[0]}'?" if nearest else ""
        return InvalidRequest(
            f"unknown field '{at}{shown}'{hint}", param=at + shown, reason="unknown_field"
        )


def unsupported(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, reason="unsupported_field")


def conflict(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, reason="conflicting_fields")


def flag(value: Any, param: str, _limits: Limits) -> bool:
    return values.boolean(value, param)


def text(value: Any, param: str, _limits: Limits) -> str:
    return values.string(value, param)


def identifier(value: Any, param: str, _limits: Limits) -> str:
    return values.identifier(value, param)


def require(read: dict[str, Any], at: str, **wanted: str) -> None:
    """Each of these fields must be there; `wanted` says what it would hold."""
    for name, what in wanted.items():
        if name not in read:
            raise values.missing(at + name, what)


def schema_of(fields: Iterable[Honoured]) -> dict[str, Any]:
    """The JSON schema properties of a table."""
    return {field.name: {**field.shape, "description": field.meaning} for field in fields}


def object_of(fields: Fields, *required: str) -> dict[str, Any]:
    """The JSON schema of an object that a table describes."""
    return {
        "type": "object",
        "properties": schema_of(fields.honoured),
        "required": list(required),
    }


def _check_inert(field: Inert, value: Any, at: str) -> None:
    if value is None or not field.values:
        return
    # 0 == False in Python, not in JSON; 0 and 0.0 are one number in both.
    if any(value == known and _is_same_kind(value, known) for known in field.values):
        return
    choices = " or ".join(msgspec.json.encode(known).decode() for known in field.values)
    raise unsupported(
        at + field.name,
        f"'{at}{field.name}' is not supported with this value; leave it out or send {choices}",
    )


def _is_same_kind(value: Any, known: Any) -> bool:
    return (type(value) is bool) == (type(known) is bool)
