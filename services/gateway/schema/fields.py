"""What a request field can be to us: honoured, accepted and inert, or refused by name.

The tables are plain data. Validation walks them, /docs and /openapi.json print them. `null` is
always the same as leaving a field out.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from deepflow.errors import InvalidRequest
from services.gateway.schema import values
from services.gateway.schema.limits import COUNT_MAX, SEED_MAX, SEED_MIN, Limits

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


class Fields(msgspec.Struct, frozen=True):
    """All that one route knows about the fields of one object."""

    honoured: tuple[Honoured, ...]
    inert: tuple[Inert, ...]
    refused: tuple[str, ...]

    def read(self, document: dict[str, Any], limits: Limits, at: str = "") -> dict[str, Any]:
        """The honoured fields that are present, checked; raises for every other kind."""
        readers = {field.name: field.read for field in self.honoured}
        inert = {field.name: field for field in self.inert}
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
                raise unsupported(at + name, f"'{at}{name}' is not supported yet; leave it out")
        return result

    def _unknown(self, name: str, at: str) -> InvalidRequest:
        known = [f.name for f in self.honoured] + [f.name for f in self.inert]
        shown = name if len(name) <= 64 else name[:61] + "..."
        nearest = difflib.get_close_matches(shown, known, n=1)
        hint = f"; did you mean '{at}{nearest[0]}'?" if nearest else ""
        return InvalidRequest(
            f"unknown field '{at}{shown}'{hint}", param=at + shown, reason="unknown_field"
        )


def unsupported(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, reason="unsupported_field")


def _check_inert(field: Inert, value: Any, at: str) -> None:
    if value is None or not field.values:
        return
    # 0 == False in Python, not in JSON; 0 and 0.0 are one number in both.
    if any(value == known and _is_same_kind(value, known) for known in field.values):
        return
    choices = " or ".join(msgspec.json.encode(known).decode() for known in field.values)
    raise unsupported(
        at + field.name,
        f"'{at}{field.name}' is not supported yet with this value; leave it out or send {choices}",
    )


def _is_same_kind(value: Any, known: Any) -> bool:
    return (type(value) is bool) == (type(known) is bool)


def _temperature(value: Any, param: str, _limits: Limits) -> float:
    return values.number(value, param, 0.0, 2.0)


def _top_p(value: Any, param: str, _limits: Limits) -> float:
    share = values.number(value, param, 0.0, 1.0)
    if share == 0.0:
        raise values.out_of_range(param, "above 0 and at most 1", value)
    return share


def _seed(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, SEED_MIN, SEED_MAX)


def max_tokens(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 1, COUNT_MAX)


def _n(value: Any, param: str, limits: Limits) -> int:
    return values.integer(value, param, 1, limits.n)


def _flag(value: Any, param: str, _limits: Limits) -> bool:
    return values.boolean(value, param)


def _model(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, 256)


def _user(value: Any, param: str, _limits: Limits) -> str:
    return values.string(value, param)


def _stop(value: Any, param: str, limits: Limits) -> list[str]:
    if type(value) is str:
        return [values.name(value, param, limits.stop_characters)]
    if type(value) is not list:
        raise values.wrong_type(param, "a string or an array of strings", value)
    if len(value) > limits.stop_strings:
        wanted = f"at most {limits.stop_strings} stop strings"
        raise values.out_of_range(param, wanted, len(value))
    return [
        values.name(item, f"{param}[{i}]", limits.stop_characters) for i, item in enumerate(value)
    ]


def _stream_options(value: Any, param: str, limits: Limits) -> dict[str, Any]:
    return STREAM_OPTIONS.read(values.mapping(value, param), limits, f"{param}.")


STREAM_OPTIONS = Fields(
    honoured=(
        Honoured(
            "include_usage",
            _flag,
            {"type": "boolean"},
            "One more chunk before [DONE] that carries the usage.",
        ),
    ),
    inert=(Inert("include_obfuscation", (False,), "No padding is ever added."),),
    refused=(),
)

SHARED_HONOURED: tuple[Honoured, ...] = (
    Honoured("model", _model, {"type": "string"}, "Name of a deployment; see /v1/models."),
    Honoured(
        "max_tokens",
        max_tokens,
        {"type": "integer", "minimum": 1},
        "Most tokens of one choice; by default as many as the context allows.",
    ),
    Honoured(
        "temperature",
        _temperature,
        {"type": "number", "minimum": 0, "maximum": 2, "default": 1},
        "0 takes the most likely token every time.",
    ),
    Honoured(
        "top_p",
        _top_p,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1},
        "Draw from the smallest set of tokens whose probabilities reach this sum.",
    ),
    Honoured(
        "seed",
        _seed,
        {"type": "integer"},
        "Same seed, same request, same answer; without one a fresh seed is drawn.",
    ),
    Honoured(
        "stop",
        _stop,
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "A string or a few; the answer ends before the first that appears.",
    ),
    Honoured("n", _n, {"type": "integer", "minimum": 1, "default": 1}, "Choices per prompt."),
    Honoured(
        "stream", _flag, {"type": "boolean", "default": False}, "Answer as server-sent events."
    ),
    Honoured(
        "stream_options",
        _stream_options,
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "Only with stream: true.",
    ),
    Honoured("user", _user, {"type": "string"}, "Your end user; written to the request log."),
    Honoured(
        "ignore_eos",
        _flag,
        {"type": "boolean", "default": False},
        "Extension: go on to max_tokens, also past the end-of-text token.",
    ),
    Honoured(
        "return_token_ids",
        _flag,
        {"type": "boolean", "default": False},
        "Extension: each choice (each chunk of a stream) carries token_ids, the ids of its new"
        " tokens. Ids of the prompt are not returned.",
    ),
)

SHARED_INERT: tuple[Inert, ...] = (
    Inert("frequency_penalty", (0,), "No penalty is applied."),
    Inert("presence_penalty", (0,), "No penalty is applied."),
    Inert("logit_bias", ({},), "No bias is applied."),
)


def schema_of(fields: Iterable[Honoured]) -> dict[str, Any]:
    """The JSON schema properties of a table."""
    return {field.name: {**field.shape, "description": field.meaning} for field in fields}
