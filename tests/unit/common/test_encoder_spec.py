"""What an encoder's folder says, and every way it can be wrong."""

from pathlib import Path
from typing import Any

import pytest

from deepflow.core.encoder_spec import EncoderSpec, is_encoder_folder
from deepflow.core.model_folder import ModelFolderError
from deepflow.core.pooling_spec import PoolingSpec
from tests.unit.common.encoder_folders import encoder_spec, write_encoder, write_json

CHAIN = ["Transformer", "Pooling", "Normalize"]
OLD_MEAN = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}


def test_a_plain_folder_is_pooled_by_the_mean_and_normalised(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    assert is_encoder_folder(folder)
    assert EncoderSpec.from_folder(folder) == encoder_spec()


@pytest.mark.parametrize(
    ("modules", "pooling", "wanted"),
    [
        (CHAIN, OLD_MEAN, PoolingSpec("mean", True)),
        (CHAIN[:2], OLD_MEAN, PoolingSpec("mean", False)),
        (CHAIN, {"pooling_mode_cls_token": True}, PoolingSpec("cls", True)),
        (
            CHAIN,
            {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": False},
            PoolingSpec("max", True),
        ),
        (CHAIN, {"embedding_dimension": 24, "pooling_mode": "cls"}, PoolingSpec("cls", True)),
        (CHAIN, {"pooling_mode": ["mean"]}, PoolingSpec("mean", True)),
    ],
)
def test_modules_say_how_to_pool(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any], wanted: PoolingSpec
) -> None:
    write_json(write_encoder(tmp_path, modules) / "1_Pooling" / "config.json", pooling)
    assert EncoderSpec.from_folder(tmp_path).pooling == wanted


def test_the_context_is_what_the_author_says_within_the_positions(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    for said, wanted in ((12, 12), (4000, 40), (None, 33)):
        write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": said})
        write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 33})
        assert EncoderSpec.from_folder(tmp_path).context_length == wanted
    (tmp_path / "sentence_bert_config.json").unlink()
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": int(1e30)})
    assert EncoderSpec.from_folder(tmp_path).context_length == 40


def test_roberta_counts_from_behind_its_padding(tmp_path: Path) -> None:
    write_encoder(tmp_path, architectures=["XLMRobertaModel"], pad_token_id=1)
    spec = EncoderSpec.from_folder(tmp_path)
    assert (spec.first_position, spec.context_length) == (2, 38)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["MPNetModel"]}, "'MPNetModel' is not supported for embeddings"),
        ({"architectures": []}, "architectures is missing"),
        ({"hidden_size": 25}, "no multiple of num_attention_heads"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"vocab_size": "97"}, "vocab_size must be a positive integer"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"architectures": ["RobertaModel"], "pad_token_id": 39}, "pad_token_id"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelFolderError, match=says):
        EncoderSpec.from_folder(write_encoder(tmp_path, **config))


@pytest.mark.parametrize(
    ("modules", "pooling", "says"),
    [
        ([*CHAIN, "Dense"], OLD_MEAN, "module 'Dense' is not supported"),
        (["Pooling", "Transformer"], OLD_MEAN, "they must be Transformer, Pooling"),
        (["Transformer"], None, "they must be Transformer, Pooling"),
        (CHAIN, {"pooling_mode": "lasttoken"}, "pooling lasttoken is not supported"),
        (CHAIN, {"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens"),
        (CHAIN, {**OLD_MEAN, "pooling_mode_cls_token": True}, r"mean \+ cls"),
        (CHAIN, {"pooling_mode_mean_tokens": False}, "by nothing"),
        (CHAIN, {"pooling_mode": "mean", "embedding_dimension": 9}, "pools vectors of 9"),
        (CHAIN, None, "1_Pooling/config.json: no such file"),
    ],
)
def test_modules_that_cannot_be_run_are_refused(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any] | None, says: str
) -> None:
    write_encoder(tmp_path, modules)
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        write_json(tmp_path / "1_Pooling" / "config.json", pooling)
    with pytest.raises(ModelFolderError, match=says):
        EncoderSpec.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ({"no": "array"}, "must hold a JSON array"),
        ([{"type": "a.Transformer"}], "needs a type"),
        ([{"type": "a.Transformer", "path": "../elsewhere"}], "inside the model's folder"),
        ([{"type": "a.Transformer", "path": "/etc"}], "inside the model's folder"),
        (
            [{"type": "a.Transformer", "path": "0"}, {"type": "a.Pooling", "path": "1"}],
            "path of the Transformer must be empty",
        ),
    ],
)
def test_a_damaged_list_of_modules_is_refused(tmp_path: Path, modules: Any, says: str) -> None:
    write_json(write_encoder(tmp_path) / "modules.json", modules)
    with pytest.raises(ModelFolderError, match=says):
        EncoderSpec.from_folder(tmp_path)


def test_lowercasing_outside_the_tokenizer_is_refused(tmp_path: Path) -> None:
    write_json(write_encoder(tmp_path) / "sentence_bert_config.json", {"do_lower_case": True})
    with pytest.raises(ModelFolderError, match="do_lower_case"):
        EncoderSpec.from_folder(tmp_path)


def test_who_is_asked_for_vectors(tmp_path: Path) -> None:
    write_encoder(tmp_path, architectures=["LlamaForCausalLM"])
    assert not is_encoder_folder(tmp_path)
    write_json(tmp_path / "modules.json", [])
    assert is_encoder_folder(tmp_path)
