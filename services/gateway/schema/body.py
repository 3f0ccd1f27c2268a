"""From the bytes of a body to a JSON object, with every way it can be wrong named."""

import itertools
import re
from typing import Any

import msgspec

from deepflow.errors import InvalidRequest
from services.gateway.schema.numbers import unreadable_number

CONTAINERS_MAX = 65536
STRINGS_MAX = 131072

# Always matches from its first quote on, also where the string never ends, and possessive
# quantifiers never go back: the scan stays linear whatever the body is.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# An opening bracket is one step down, a closing one a step up.
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def parse_object(body: bytes, depth_max: int) -> dict[str, Any]:
    if not body:
        raise InvalidRequest("the body is empty; send a JSON object", reason="invalid_json")
    check_shape(body, depth_max)
    value = _decode(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", reason="invalid_json")
    return value


def check_shape(body: bytes, depth_max: int) -> None:
    """Refuse what nests too deep, or holds more than any request needs; parses nothing."""
    if body.count(b"[") + body.count(b"{") <= depth_max:
        return
    # Bounds the scan below: quotes that no backslash precedes are at most twice the strings.
    if body.count(b'"') - body.count(b'\\"') > 2 * STRINGS_MAX:
        raise _too_complex(f"more than {STRINGS_MAX} strings")
    brackets = _STRING.sub(b"", body).translate(_STEPS, _NOT_BRACKETS)
    if len(brackets) > 2 * CONTAINERS_MAX:
        raise _too_complex(f"more than {CONTAINERS_MAX} arrays and objects")
    if max(itertools.accumulate(memoryview(brackets).cast("b")), default=0) > depth_max:
        raise InvalidRequest(
            f"the body nests arrays and objects deeper than {depth_max} levels",
            reason="json_too_deep",
        )


def _too_complex(what: str) -> InvalidRequest:
    return InvalidRequest(f"the body holds {what}", reason="json_too_complex")


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not valid UTF-8", reason="invalid_utf8") from error
    except msgspec.ValidationError as error:
        field = unreadable_number(body)
        raise InvalidRequest(
            f"a number in the body is out of range: {field or error}",
            param=field,
            reason="number_out_of_range",
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        field = unreadable_number(body)
        what = f"'{field}' is not a finite number" if field else str(error)
        raise InvalidRequest(
            f"the body is not valid JSON: {what}", param=field, reason="invalid_json"
        ) from error
