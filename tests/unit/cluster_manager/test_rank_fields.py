"""Over how many ranks a model is split: what is refused at once, and what travels on."""

import pytest

from deepflow.deployments import content_of, describe_deployment
from deepflow.errors import InvalidRequest
from deepflow.local.progress import ModelChoice
from deepflow.v1 import cluster_pb2
from services.cluster_manager.deployments.request import check_against_facts, check_deployment


def asked(
    device: str = "cpu", tensor_parallel: int = 0, pipeline_parallel: int = 0
) -> cluster_pb2.Deployment:
    return cluster_pb2.Deployment(
        name="m",
        source="/m",
        device=device,
        replicas=1,
        engine=cluster_pb2.EngineOptions(
            tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel
        ),
    )


def test_ranks_are_accepted_where_something_computes() -> None:
    check_deployment(asked(tensor_parallel=2, pipeline_parallel=3))
    check_deployment(asked("emulated:h200", tensor_parallel=1))
    with_tiers = asked(tensor_parallel=2)
    with_tiers.engine.kv_dram_bytes = with_tiers.engine.kv_disk_bytes = 1 << 30
    check_deployment(with_tiers)


@pytest.mark.parametrize("field", ["tensor_parallel", "pipeline_parallel"])
def test_an_emulated_device_has_no_ranks(field: str) -> None:
    deployment = asked("emulated:h200")
    setattr(deployment.engine, field, 2)
    with pytest.raises(InvalidRequest, match="emulates one accelerator") as caught:
        check_deployment(deployment)
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["tensor_parallel", "pipeline_parallel"])
def test_there_is_a_largest_number_of_ranks(field: str) -> None:
    deployment = asked()
    setattr(deployment.engine, field, 65)
    with pytest.raises(InvalidRequest, match="must be from 1 to 64"):
        check_deployment(deployment)


def test_an_embedding_model_runs_on_one_rank() -> None:
    deployment = asked(tensor_parallel=2)
    deployment.facts.task = cluster_pb2.MODEL_TASK_EMBED
    with pytest.raises(InvalidRequest, match="one rank") as caught:
        check_against_facts(deployment)
    assert caught.value.param == "tensor_parallel"


def test_more_ranks_are_another_load_and_one_is_what_nothing_means(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    one = ModelChoice("m", folder, "cpu", 1).deployment()
    two = ModelChoice("m", folder, "cpu", 1, tensor_parallel=2, pipeline_parallel=1).deployment()
    assert (two.engine.tensor_parallel, two.engine.pipeline_parallel) == (2, 0)
    assert one.engine == cluster_pb2.EngineOptions()
    assert content_of(one) != content_of(two)
    row = describe_deployment(two, [])
    assert (row["tensor_parallel"], row["pipeline_parallel"]) == (2, 1)
