"""Readers of single values: they answer the value or name the field that is wrong.

Nothing is coerced: "5" is not 5 and true is not 1.
"""

import math
import re
from typing import Any

import msgspec

from deepflow.errors import InvalidRequest

# What OpenAI allows for the name of a function or a schema.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")

# The smallest number above zero that the wire's fp32 holds in full precision.
ABOVE_ZERO = 2.0**-126

_WORDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def word(value: Any) -> str:
    return _WORDS[type(value)]


def wrong_type(param: str, wanted: str, value: Any) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' must be {wanted}, not {word(value)}", param=param, reason="invalid_type"
    )


def out_of_range(param: str, wanted: str, value: Any) -> InvalidRequest:
    shown = str(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return InvalidRequest(
        f"'{param}' must be {wanted}, not {shown}", param=param, reason="out_of_range"
    )


def unknown_token(param: str, vocab_size: int, token_id: int) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' must be a token id from 0 to {vocab_size - 1}, not {token_id}",
        param=param,
        reason="token_id_out_of_range",
    )


def missing(param: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' is required: {wanted}", param=param, reason="missing_field")


def string(value: Any, param: str) -> str:
    if type(value) is not str:
        raise wrong_type(param, "a string", value)
    return value


def name(value: Any, param: str, characters_max: int) -> str:
    text = string(value, param)
    if not 1 <= len(text) <= characters_max:
        raise out_of_range(param, f"a string of 1 to {characters_max} characters", repr(text))
    return text


def identifier(value: Any, param: str) -> str:
    text = string(value, param)
    if not _IDENTIFIER.fullmatch(text):
        raise out_of_range(param, "1 to 64 letters, digits, underscores or dashes", repr(text))
    return text


def boolean(value: Any, param: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(param, "true or false", value)
    return value


def integer(value: Any, param: str, minimum: int, maximum: int) -> int:
    if type(value) is not int:
        raise wrong_type(param, "an integer", value)
    if not minimum <= value <= maximum:
        raise out_of_range(param, f"between {minimum} and {maximum}", value)
    return value


def number(value: Any, param: str, minimum: float, maximum: float) -> float:
    if type(value) is not int and type(value) is not float:
        raise wrong_type(param, "a number", value)
    if not minimum <= value <= maximum or math.isnan(value):
        raise out_of_range(param, f"between {minimum:g} and {maximum:g}", value)
    return float(value)


def positive(value: Any, param: str, maximum: float) -> float:
    """Above zero, also after it has become fp32."""
    if number(value, param, 0.0, maximum) == 0.0:
        raise out_of_range(param, f"above 0 and at most {maximum:g}", value)
    return max(float(value), ABOVE_ZERO)


def array(value: Any, param: str, items_max: int) -> list[Any]:
    if type(value) is not list:
        raise wrong_type(param, "an array", value)
    if not value:
        raise InvalidRequest(
            f"'{param}' is empty; it needs at least one item", param=param, reason="empty"
        )
    if len(value) > items_max:
        raise out_of_range(param, f"an array of at most {items_max} items", len(value))
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise wrong_type(param, "an object", value)
    return value


def json_text(value: Any, param: str, bytes_max: int) -> str:
    """An object as it travels on."""
    text = msgspec.json.encode(mapping(value, param))
    if len(text) > bytes_max:
        raise out_of_range(param, f"at most {bytes_max} bytes of JSON", f"{len(text)} bytes")
    return text.decode()


def word_of(value: Any, param: str, words: tuple[str, ...]) -> str:
    text = string(value, param)
    if text not in words:
        raise out_of_range(param, f"one of {', '.join(words)}", repr(text))
    return text
