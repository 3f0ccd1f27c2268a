"""What one step of a chat template may make. Pure: looks before anything large is there.

A template's time is limited, but no step of it can be interrupted, and both factors of a product
can be a client's: a width, a count, a text. Everything here raises OverflowError.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

# How long a text or list may become by a number: repeated, filled up, indented.
PRODUCT_LENGTH_MAX = 1_000_000
# How large a number may become, and a power's exponent.
PRODUCT_BITS_MAX = 4096
# How long a text may become by other texts, and the prompt by all: beyond any context.
TEXT_LENGTH_MAX = 16_000_000
# Of JSON, which indents every line of it, and separates every value.
JSON_SPACE_MAX = 64

_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")
_DIGITS = re.compile(r"\d+")
_FILLING = ("center", "ljust", "rjust", "zfill", "to_bytes")


def check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "%":
        if isinstance(left, str | bytes):
            check_conversions(_text(left), right)
        return
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length()
        if bits > PRODUCT_BITS_MAX:
            raise OverflowError("a number becomes too large")
    for repeated, times in ((left, right), (right, left)):
        if isinstance(repeated, Sized):
            _check_product(len(repeated), times)


def check_call(method: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Methods of texts and numbers that fill up, repeat or put together."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int):
        return
    given = (*args, *kwargs.values())
    if name in _FILLING and given:
        _check_product(1, given[0])
    elif name == "expandtabs":
        _check_product(_text(owner).count("\t"), given[0] if given else 8)
    elif name == "replace" and len(args) >= 2:
        _check_replacement(_text(owner), _text(args[0]), _text(args[1]))
    elif name == "join" and args and isinstance(args[0], Sized):
        _check_text(len(_text(owner)) * len(args[0]))


def check_conversions(form: str, values: Any) -> None:
    """Of the operator % between a text and what goes into it."""
    given = _values(values)
    widths = [word for pair in _CONVERSION.findall(form) for word in pair]
    if "*" in widths:
        widths += [str(abs(value)) for value in given if _is_number(value)]
    for word in widths:
        check_widths(word)
    longest = max((len(value) for value in given if isinstance(value, str)), default=0)
    _check_text(form.count("%") * longest)
    _check_text(sum(int(word) for word in widths if word.isdecimal()))


def check_widths(spec: str) -> None:
    """Of one replacement field, as `str.format` knows them."""
    for digits in _DIGITS.findall(spec):
        if len(digits) > len(str(PRODUCT_LENGTH_MAX)) or int(digits) > PRODUCT_LENGTH_MAX:
            raise OverflowError("a text becomes too long")


def _center(given: dict[str, Any]) -> None:
    _check_product(1, given["width"])


def _indent(given: dict[str, Any]) -> None:
    width = given["width"]
    lines = str(given["s"]).count("\n") + 1
    _check_product(lines, len(width) if isinstance(width, str) else width)


def _wordwrap(given: dict[str, Any]) -> None:
    width, between = given["width"], given["wrapstring"]
    if _is_number(width) and width > 0 and isinstance(between, str):
        _check_text((len(str(given["s"])) // width + 1) * len(between))


def _replace(given: dict[str, Any]) -> None:
    _check_replacement(str(given["s"]), str(given["old"]), str(given["new"]))


def _join(given: dict[str, Any]) -> None:
    given["value"] = items = list(given["value"])
    _check_text(len(items) * len(str(given["d"])))


def _format(given: dict[str, Any]) -> None:
    check_conversions(str(given["value"]), given["kwargs"] or given["args"])


def _batch(given: dict[str, Any]) -> None:
    _check_product(1, given["linecount"])


def _slice(given: dict[str, Any]) -> None:
    _check_product(1, given["slices"])


def _round(given: dict[str, Any]) -> None:
    check_operation("**", 2, given["precision"])


def _to_json(given: dict[str, Any]) -> None:
    spaces = [given["indent"], *(given["separators"] or ())]
    for space in spaces:
        length = len(space) if isinstance(space, str) else space
        if _is_number(length) and length > JSON_SPACE_MAX:
            raise OverflowError(f"JSON is spaced by more than {JSON_SPACE_MAX} characters")


# By filter; each sees the filter's arguments by name, and may put others in their place.
FILTER_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "center": _center,
    "indent": _indent,
    "wordwrap": _wordwrap,
    "replace": _replace,
    "join": _join,
    "format": _format,
    "batch": _batch,
    "slice": _slice,
    "round": _round,
    "tojson": _to_json,
}


def _check_product(length: int, times: Any) -> None:
    if _is_number(times) and length * times > PRODUCT_LENGTH_MAX:
        raise OverflowError("a text or list becomes too long")


def _check_replacement(text: str, old: str, new: str) -> None:
    if len(new) > len(old):
        _check_text(text.count(old) * len(new))


def _check_text(length: int) -> None:
    if length > TEXT_LENGTH_MAX:
        raise OverflowError("a text becomes too long")


def _values(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return list(given.values())
    return list(given) if isinstance(given, tuple) else [given]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
