"""Every way a body can fail to be a JSON object, found before or while parsing."""

import contextlib
import time

import pytest

from deepflow.errors import InvalidRequest
from services.gateway.schema.body import CONTAINERS_MAX, STRINGS_MAX, check_shape, parse_object

DEPTH = 64


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": Infinity}', "invalid_json"),
        (b'{"a": 1} {"b": 2}', "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b'{"a": 1e999}', "number_out_of_range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number_out_of_range"),
        (b'{"a": "\xff"}', "invalid_utf8"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "json_too_deep"),
        (b'{"a":' * 2000, "json_too_deep"),
        (b"[" * 1_000_000, "json_too_complex"),
        (b'{"a": [' + b"[]," * CONTAINERS_MAX + b"[]]}", "json_too_complex"),
        (b"[" * 65 + b'"",' * (STRINGS_MAX + 1), "json_too_complex"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_object(body, DEPTH)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"a": 1, "temperature": NaN}', "temperature"),
        (b'{"stop": ["x", -Infinity]}', "stop[1]"),
        (b'{"metadata": {"b": [{"c": 1e999}]}}', "metadata.b[0].c"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "seed"),
        (b'{"seed": NaN', ""),
        (b'{"seed": NaN, "a": "\xff"}', ""),
    ],
)
def test_a_number_that_cannot_be_read_is_named(body: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_object(body, DEPTH)
    assert raised.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"a": "' + b"[" * 1000 + b'"}',
        b'{"a": "\\"' + b"[{" * 1000 + b'\\\\"}',
        b'{"a": [' + b"{}," * 1000 + b"{}]}",
        '{"a": "\u00fc\U0001f600"}'.encode(),
    ],
)
def test_brackets_count_only_where_they_nest(body: bytes) -> None:
    assert "a" in parse_object(body, DEPTH)


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 2_000_000 + b"\\",
        b'"["' * 1_300_000,
        (b"[" * 64 + b"]" * 64 + b",") * 32_000,
        b'"' * 4_000_000,
        b'[["a"]' + b'"[",' * 130_000,
    ],
)
def test_the_scan_is_linear_in_the_worst_bodies(body: bytes) -> None:
    began = time.thread_time()
    with contextlib.suppress(InvalidRequest):
        check_shape(body, DEPTH)
    assert time.thread_time() - began < 10.0, "a quadratic scan would take minutes"
