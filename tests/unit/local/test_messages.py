import json
from typing import Any

import pytest

from deepflow.errors import InvalidRequest
from deepflow.local import messages


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_a_start_carries_its_settings() -> None:
    request = messages.decode(
        _line(op="start", service="task_executor", name="te-0", settings={"device": "cpu", "n": 2})
    )
    assert isinstance(request, messages.Start)
    assert request.settings == {"device": "cpu", "n": 2}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"[]",
        _line(op="explode"),
        _line(op="start", service="bash", name="x"),
        _line(op="start", service="nats", name="x"),
        _line(op="start", service="gateway", name="../x"),
        _line(op="start", service="gateway", name=""),
        _line(op="start", service="gateway", name="x", command=["/bin/sh"]),
        _line(op="start", service="gateway", name="x", settings={"PATH": "/tmp"}),
        _line(op="start", service="gateway", name="x", settings={"a=b": "c"}),
        _line(op="start", service="gateway", name="x", settings={"a": ["b"]}),
        _line(op="start", service="gateway", name="x", settings={f"a{i}": 1 for i in range(65)}),
        _line(op="stop", name="x", grace_seconds=-1),
        _line(op="stop"),
    ],
)
def test_everything_else_is_refused_with_a_sentence(line: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        messages.decode(line)
    assert len(refusal.value.message.split()) > 3
