"""What an admin may ask for, and what becomes of what was there."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from services.gateway.schema import admin
from tests.unit.gateway.test_schema import LIMITS

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "source": st.just("/models/other"),
    "replicas": st.integers(1, 64),
    "device": st.sampled_from(["cpu", "emulated:zero"]),
    "dtype": st.sampled_from(["", "bfloat16"]),
    "max_tokens": st.integers(0, 4096),
    "kv_memory": st.sampled_from(["", "2GiB", "512MiB"]),
    "kv_dram": st.sampled_from(["", "512MiB"]),
    "kv_disk": st.sampled_from(["", "2GiB"]),
    "tool_format": st.sampled_from(["", "hermes"]),
    "tensor_parallel": st.sampled_from([0, 2, 64]),
    "pipeline_parallel": st.sampled_from([0, 3]),
}
KV_BYTES = {"": 0, "2GiB": 2 << 30, "512MiB": 512 << 20}
CHANGES = st.fixed_dictionaries({}, optional=VALUES)


def former() -> cluster_pb2.Deployment:
    return cluster_pb2.Deployment(
        name="m", source="/models/m", device="emulated:h200", replicas=3, dtype="float16",
        max_tokens=99, kv_bytes=7, tool_format="llama3", revision=4,
    )  # fmt: skip


WIRE_NAMES = {"kv_memory": "kv_bytes", "kv_dram": "kv_dram_bytes", "kv_disk": "kv_disk_bytes"}

OF_THE_ENGINE = ("kv_dram", "kv_disk", "tensor_parallel", "pipeline_parallel")


def change(deployment: cluster_pb2.Deployment, field: str, value: Any) -> None:
    holder = deployment.engine if field in OF_THE_ENGINE else deployment
    name = WIRE_NAMES.get(field, field)
    setattr(holder, name, KV_BYTES[value] if field in WIRE_NAMES else value)


@given(changes=CHANGES)
def test_only_what_is_named_changes(changes: dict[str, Any]) -> None:
    asked = admin.read_deployment(changes, LIMITS, "m", former())
    expected = former()
    for field, value in changes.items():
        change(expected, field, value)
    assert asked == expected


@given(changes=CHANGES)
def test_a_change_that_is_made_twice_is_made_once(changes: dict[str, Any]) -> None:
    once = admin.read_deployment(changes, LIMITS, "m", former())
    assert admin.read_deployment(changes, LIMITS, "m", once) == once


def test_a_new_one_has_defaults_and_needs_a_source() -> None:
    asked = admin.read_deployment({"source": "/m"}, LIMITS, "m", None)
    assert asked == cluster_pb2.Deployment(name="m", source="/m", device="cpu", replicas=1)
    with pytest.raises(InvalidRequest) as refused:
        admin.read_deployment({"source": None}, LIMITS, "m", None)
    assert (refused.value.param, refused.value.reason) == ("source", "missing_field")


@pytest.mark.parametrize("read", [admin.read_replicas, admin.read_count])
def test_a_number_is_a_number(read: Any) -> None:
    name = "replicas" if read is admin.read_replicas else "count"
    assert [read({name: it}, LIMITS) for it in (1, 64)] == [1, 64]
    for wrong in (0, 65, -1, 1.0, "1", True, [1], 10**30):
        with pytest.raises(InvalidRequest) as refused:
            read({name: wrong}, LIMITS)
        assert refused.value.param == name
    for missing in ({}, {name: None}):
        with pytest.raises(InvalidRequest, match="from 1 to 64"):
            read(missing, LIMITS)
