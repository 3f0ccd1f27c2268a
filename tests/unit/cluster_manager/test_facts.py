"""What a deployment's record says of its model's folder."""

from pathlib import Path
from typing import Any

import pytest

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from services.cluster_manager.deployments.request import check_against_facts, read_facts
from tests.unit.common.encoder_folders import write_encoder


def test_an_encoder_makes_embeddings(tmp_path: Path) -> None:
    facts = read_facts(str(write_encoder(tmp_path)))
    assert facts.task == cluster_pb2.MODEL_TASK_EMBED
    assert (facts.embedding_size, facts.context_length, facts.vocab_size) == (24, 40, 97)
    assert facts.architecture == "BertModel"
    assert not facts.has_chat_template


def test_another_way_of_pooling_is_another_revision(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    plain = read_facts(str(tmp_path)).model_revision
    write_encoder(tmp_path, ["Transformer", "Pooling"])
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    first_token = read_facts(str(tmp_path)).model_revision
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    assert len({plain, first_token, read_facts(str(tmp_path)).model_revision}) == 3


def test_a_generator_generates() -> None:
    from deepflow.demo import MODEL_DIR

    facts = read_facts(str(MODEL_DIR))
    assert facts.task == cluster_pb2.MODEL_TASK_GENERATE
    assert facts.embedding_size == 0


def test_an_encoder_that_cannot_be_served_is_refused_at_deploy(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, ["Transformer", "Pooling", "Dense"])
    (folder / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="module 'Dense'") as refused:
        read_facts(str(folder))
    assert refused.value.param == "source"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"device": "emulated:h200"}, "device"),
        ({"device": "cpu", "kv_bytes": 1 << 20}, "kv_bytes"),
        ({"device": "cpu", "dtype": "bfloat16"}, "dtype"),
        ({"device": "cpu", "max_tokens": 41}, "max_tokens"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused_at_deploy(
    tmp_path: Path, asked: dict[str, Any], param: str
) -> None:
    facts = read_facts(str(write_encoder(tmp_path)))
    with pytest.raises(InvalidRequest) as refused:
        check_against_facts(cluster_pb2.Deployment(facts=facts, **asked))
    assert refused.value.param == param
    check_against_facts(cluster_pb2.Deployment(facts=facts, device="cpu", dtype="float32"))
