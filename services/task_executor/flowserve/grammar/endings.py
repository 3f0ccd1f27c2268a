"""Whether every part of a JSON schema has an answer that comes to an end. Pure.

A part that needs itself, whichever way it goes, has none: its grammar compiles, and an answer that
came to it would find no token that fits, or none that closes what is open. Other reasons for a
schema to have no answer are the compiler's to find; what is not understood here counts as fine.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

POINTER_CHARACTERS_MAX = 120
_FIXED = ("enum", "const")
_EVERY_OF, _ANY_OF = "allOf", ("anyOf", "oneOf")
_BY_NAME = ("properties", "patternProperties")
_OF_OBJECTS = (*_BY_NAME, "additionalProperties")
_OF_ARRAYS = ("prefixItems", "items")

_Part = dict[str, Any]
_Ends = Callable[[Any], bool]


def find_endless_part(schema: Any) -> str:
    """Where it is, as a JSON pointer that begins with #; empty where there is none."""
    if not isinstance(schema, dict):
        return ""
    reached = _Reached(schema)
    return "" if reached.has_other_bases else _first_endless(reached)


def _first_endless(reached: "_Reached") -> str:
    ending: set[int] = set()

    def ends(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in ending

    # Parts are found before what is in them: backwards, what needs no reference ends at once.
    waiting = list(reversed(reached.parts))
    while waiting:
        left = []
        for pointer, part in waiting:
            if _ends(part, reached, ends):
                ending.add(id(part))
            else:
                left.append((pointer, part))
        if len(left) == len(waiting):
            return left[-1][0]
        waiting = left
    return ""


class _Reached:
    """Every part that an answer can come to, the root first, each once."""

    def __init__(self, root: _Part) -> None:
        self._root = root
        self._targets: dict[str, Any] = {}
        self.has_other_bases = False  # references that mean something else than they seem to
        self.parts: list[tuple[str, _Part]] = [("#", root)]
        known = {id(root)}
        for pointer, part in self.parts:  # grows meanwhile
            self.has_other_bases |= "$id" in part and part is not root
            for place, inner in self._inside(pointer, part):
                if isinstance(inner, dict) and id(inner) not in known:
                    known.add(id(inner))
                    self.parts.append((place[:POINTER_CHARACTERS_MAX], inner))

    def target(self, part: _Part) -> Any:
        """What its reference points at; None where that is not inside the schema."""
        reference = part.get("$ref")
        if not isinstance(reference, str):
            return None
        if reference not in self._targets:
            self._targets[reference] = _resolve(self._root, reference)
        return self._targets[reference]

    def _inside(self, pointer: str, part: _Part) -> Iterator[tuple[str, Any]]:
        if any(name in part for name in _FIXED):
            return
        yield str(part.get("$ref")), self.target(part)
        names = [_EVERY_OF, *_ANY_OF]
        names += _OF_OBJECTS if _may_be(part, "object") else ()
        names += _OF_ARRAYS if _may_be(part, "array") else ()
        for name in names:
            value = part.get(name)
            if isinstance(value, list):
                yield from ((f"{pointer}/{name}/{i}", item) for i, item in enumerate(value))
            elif isinstance(value, dict) and name in _BY_NAME:
                yield from ((f"{pointer}/{name}/{key}", item) for key, item in value.items())
            else:
                yield f"{pointer}/{name}", value


def _ends(part: _Part, reached: _Reached, ends: _Ends) -> bool:
    if any(name in part for name in _FIXED):
        return True
    if not ends(reached.target(part)) or not all(map(ends, _list(part, _EVERY_OF))):
        return False
    for name in _ANY_OF:
        options = _list(part, name)
        if options and not any(map(ends, options)):
            return False
    return _body_ends(part, ends)


def _body_ends(part: _Part, ends: _Ends) -> bool:
    types = part.get("type")
    kinds = types if isinstance(types, list) else [types]
    if any(kind not in ("object", "array") for kind in kinds):
        return True
    return ("object" in kinds and _object_ends(part, ends)) or (
        "array" in kinds and _array_ends(part, ends)
    )


def _object_ends(part: _Part, ends: _Ends) -> bool:
    properties = _dict(part, "properties")
    others = part.get("additionalProperties")
    patterns = _dict(part, "patternProperties")
    for name in _list(part, "required"):
        if isinstance(name, str) and name in properties:
            if not ends(properties[name]):
                return False
        elif not patterns and not ends(others):
            return False
    if _count(part, "minProperties") and others is not None:
        return any(map(ends, (*properties.values(), *patterns.values(), others)))
    return True


def _array_ends(part: _Part, ends: _Ends) -> bool:
    least, first = _count(part, "minItems"), _list(part, "prefixItems")
    return all(map(ends, first[:least])) and (least <= len(first) or ends(part.get("items")))


def _may_be(part: _Part, kind: str) -> bool:
    types = part.get("type", kind)
    return kind in types if isinstance(types, list) else types == kind


def _list(part: _Part, name: str) -> list[Any]:
    value = part.get(name)
    return value if isinstance(value, list) else []


def _dict(part: _Part, name: str) -> dict[str, Any]:
    value = part.get(name)
    return value if isinstance(value, dict) else {}


def _count(part: _Part, name: str) -> int:
    value = part.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _resolve(root: _Part, reference: str) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        return None
    place: Any = root
    for word in unquote(reference).split("/")[1:]:
        key = word.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(key)
        elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            return None
    return place
