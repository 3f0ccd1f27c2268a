import json
from pathlib import Path

import pytest

from deepflow.core.model_folder import ModelFolderError
from deepflow.core.model_spec import ModelSpec, count_parameters, model_revision
from deepflow.core.rope_spec import RopeSpec
from tests.unit.flowserve.model_specs import write_config, write_safetensors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_reads_shape_and_derives_what_is_missing(tmp_path: Path) -> None:
    spec = ModelSpec.from_folder(write_config(tmp_path))
    assert (spec.hidden_size, spec.num_layers, spec.num_heads) == (64, 2, 4)
    assert (spec.num_kv_heads, spec.head_dim, spec.q_size, spec.kv_size) == (2, 16, 64, 32)
    assert (spec.vocab_size, spec.context_length, spec.dtype) == (1000, 512, "bfloat16")
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2,))
    assert not (spec.tied_embeddings or spec.qkv_bias or spec.output_bias or spec.mlp_bias)
    assert (spec.activation, spec.layer_windows) == ("silu", (None, None))
    assert spec.rope == RopeSpec()


def test_kv_heads_default_to_heads_and_head_dim_may_differ_from_hidden(tmp_path: Path) -> None:
    spec = ModelSpec.from_folder(write_config(tmp_path, num_key_value_heads=None, head_dim=24))
    assert (spec.num_kv_heads, spec.head_dim, spec.q_size) == (4, 24, 96)


def test_old_and_new_spelling_of_rope_and_dtype_agree(tmp_path: Path) -> None:
    old = write_config(tmp_path / "old", rope_theta=5e5, rope_scaling=LLAMA3)
    new = write_config(
        tmp_path / "new",
        rope_parameters=LLAMA3 | {"rope_theta": 5e5},
        torch_dtype=None,
        dtype="bfloat16",
    )
    assert ModelSpec.from_folder(old) == ModelSpec.from_folder(new)
    assert ModelSpec.from_folder(new).rope == RopeSpec("llama3", 5e5, 8.0, 1.0, 4.0, 8192)


def test_rope_scaling_of_type_linear_with_the_oldest_spelling(tmp_path: Path) -> None:
    folder = write_config(tmp_path, rope_scaling={"type": "linear", "factor": 2})
    rope = ModelSpec.from_folder(folder).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 2.0, 10_000.0)


def test_generation_config_decides_which_tokens_end_an_answer(tmp_path: Path) -> None:
    folder = write_config(tmp_path, eos_token_id=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, 5]}))
    spec = ModelSpec.from_folder(folder)
    assert spec.eos_token_ids == (5, 7)
    assert spec.bos_token_id == 1


def test_eos_is_the_familys_where_the_folder_says_nothing(tmp_path: Path) -> None:
    folder = write_config(tmp_path, eos_token_id=None)
    assert ModelSpec.from_folder(folder).eos_token_ids == (2,)
    write_config(folder, eos_token_id=[])
    assert ModelSpec.from_folder(folder).eos_token_ids == ()
    write_config(folder, eos_token_id=None, architectures=["Qwen2ForCausalLM"])
    assert ModelSpec.from_folder(folder).eos_token_ids == ()


def test_kv_bytes_count_both_halves_of_all_layers(tmp_path: Path) -> None:
    spec = ModelSpec.from_folder(write_config(tmp_path))
    assert spec.kv_bytes_per_token("bfloat16") == 2 * 2 * 2 * 16 * 2
    assert spec.kv_bytes_per_token("float32") == 2 * spec.kv_bytes_per_token("bfloat16")


def test_parameters_come_from_headers_and_else_from_the_shape(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    spec = ModelSpec.from_folder(folder)
    per_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64
    assert spec.parameters == count_parameters(spec) == 2 * per_layer + 2 * 64_000 + 64
    write_safetensors(folder / "model.safetensors", {"a": [3, 5], "b": [7]})
    assert ModelSpec.from_folder(folder).parameters == 22


def test_a_tied_table_stored_twice_counts_once(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    tables = {"model.embed_tokens.weight": [5, 2], "lm_head.weight": [5, 2]}
    write_safetensors(folder / "model.safetensors", tables)
    assert ModelSpec.from_folder(folder).parameters == 20
    write_config(folder, tie_word_embeddings=True)
    assert ModelSpec.from_folder(folder).parameters == 10


def test_weight_bytes_count_what_the_loader_makes_of_the_shape(tmp_path: Path) -> None:
    spec = ModelSpec.from_folder(write_config(tmp_path))
    assert spec.weight_bytes("float32") == 4 * count_parameters(spec)
    assert spec.weight_bytes("bfloat16") == 2 * count_parameters(spec)
    tied = ModelSpec.from_folder(write_config(tmp_path, tie_word_embeddings=True))
    assert count_parameters(tied) == count_parameters(spec) - 64_000
    assert tied.weight_bytes("float32") == spec.weight_bytes("float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures is missing"),
        ({"architectures": ["GPT2LMHeadModel"]}, "supported: LlamaForCausalLM, Mistral"),
        ({"architectures": ["GPT2LMHeadModel"]}, "and for embeddings BertModel"),
        ({"architectures": [["LlamaForCausalLM"]]}, "is not supported"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: silu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights are not supported"),
        ({"head_dim": 15}, r"head_dim \(15\) must be even"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10000"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "is not supported; supported: default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope type 'linear' needs factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor must be a positive"),
        ({"rope_scaling": {"rope_type": "yarn", "beta_fast": True}}, "beta_fast must be a pos"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "must be above low_freq_factor"),
        ({"rope_parameters": {"full_attention": {}}}, "differ by kind of layer"),
        ({"rope_theta": 10**400}, "rope_theta must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "needs factor"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"eos_token_id": "</s>"}, "eos_token_id must hold token ids"),
        ({"torch_dtype": "int8"}, "dtype 'int8' is not supported"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
    ],
)
def test_a_bad_config_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelFolderError, match=message) as caught:
        ModelSpec.from_folder(write_config(tmp_path, **changes))
    assert "config.json" in str(caught.value)


def test_missing_folder_file_and_bad_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no such model folder"):
        ModelSpec.from_folder(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match="no such file"):
        ModelSpec.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not valid JSON"):
        ModelSpec.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelFolderError, match="must hold a JSON object"):
        ModelSpec.from_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 1}\n',
    ],
)
def test_a_damaged_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_config(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        ModelSpec.from_folder(folder)


def test_an_index_names_only_files_of_its_own_folder(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelFolderError, match="no safetensors file name"):
        ModelSpec.from_folder(folder)
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    with pytest.raises(ModelFolderError, match="not there"):
        ModelSpec.from_folder(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    for name in ("one", "two"):
        write_safetensors(folder / f"{name}.safetensors", {"a": [1]})
    with pytest.raises(ModelFolderError, match="tensor a is also in one"):
        ModelSpec.from_folder(folder)


def test_revision_follows_what_decides_the_tokens(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model")
    write_safetensors(folder / "model.safetensors", {"a": [2]})
    revisions = [model_revision(folder)]
    (folder / "README.md").write_text("not part of the model")
    assert model_revision(folder) == revisions[0]
    (folder / "tokenizer.json").write_text("{}")
    revisions.append(model_revision(folder))
    write_safetensors(folder / "model.safetensors", {"a": [3]})
    revisions.append(model_revision(folder))
    write_config(folder, vocab_size=999)
    revisions.append(model_revision(folder))
    assert len(set(revisions)) == 4
    folder.rename(tmp_path / "moved")
    assert model_revision(tmp_path / "moved") == revisions[-1]
