"""What of a deployment makes a task executor load anew."""

import pytest

from deepflow.deployments import content_of
from deepflow.v1 import cluster_pb2


def deployment() -> cluster_pb2.Deployment:
    facts = cluster_pb2.ModelFacts(model_revision="r1")
    return cluster_pb2.Deployment(name="m", source="/m", device="cpu", replicas=1, facts=facts)


@pytest.mark.parametrize(
    ("field", "value", "is_another_load"),
    [
        ("source", "/n", True),
        ("device", "emulated:zero", True),
        ("dtype", "bfloat16", True),
        ("max_tokens", 512, True),
        ("kv_bytes", 1 << 30, True),
        ("replicas", 2, False),
        ("revision", 7, False),
        ("tool_format", "hermes", False),
    ],
)
def test_which_changes_are_another_load(field: str, value: object, is_another_load: bool) -> None:
    changed = deployment()
    setattr(changed, field, value)
    assert (content_of(changed) != content_of(deployment())) == is_another_load


def test_another_model_in_the_same_folder_is_another_load() -> None:
    changed = deployment()
    changed.facts.model_revision = "r2"
    assert content_of(changed) != content_of(deployment())


def test_an_engine_that_works_otherwise_is_another_load() -> None:
    changed = deployment()
    changed.engine.policy = "slo"
    assert content_of(changed) != content_of(deployment())
