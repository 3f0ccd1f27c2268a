"""Names the number that keeps a body from being read: NaN, an infinity, too many digits."""

import json
import math
from typing import Any

# A longer body is not read a second time only to word its error.
BYTES_MAX = 64 * 1024
DIGITS_MAX = 1024

_UNREADABLE = object()


def unreadable_number(body: bytes) -> str:
    """The field that holds it; empty where something else is wrong. The nesting was checked."""
    if len(body) > BYTES_MAX:
        return ""
    try:
        value = json.loads(
            body.decode(),
            parse_constant=lambda _: _UNREADABLE,
            parse_int=_integer,
            parse_float=_float,
        )
    except ValueError:
        return ""
    return _find(value, "")


def _integer(digits: str) -> Any:
    return _UNREADABLE if len(digits) > DIGITS_MAX else 0


def _float(digits: str) -> Any:
    return 0.0 if math.isfinite(float(digits)) else _UNREADABLE


def _find(value: Any, at: str) -> str:
    if value is _UNREADABLE:
        return at
    inside: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inside = [(f"{at}.{name[:64]}" if at else name[:64], it) for name, it in value.items()]
    elif isinstance(value, list):
        inside = [(f"{at}[{index}]", it) for index, it in enumerate(value)]
    return next(filter(None, (_find(it, where) for where, it in inside)), "")
