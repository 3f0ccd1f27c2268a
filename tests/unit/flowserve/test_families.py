"""What is read of a family's config.json, against what transformers reads of the same file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepflow.core.families import FAMILIES
from deepflow.core.model_folder import ModelFolderError
from deepflow.core.model_spec import ModelSpec, count_parameters
from deepflow.core.rope_spec import RopeSpec
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.flowserve.layers.rotary import Rotary, inverse_frequencies
from tests.unit.flowserve.model_specs import write_config

MODEL_TYPES = {name: name.removesuffix("ForCausalLM").lower() for name in FAMILIES}
REQUIRED = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "eos_token_id")


def read_both(folder: Path, architecture: str, changes: Mapping[str, Any]) -> tuple[ModelSpec, Any]:
    """A config.json with nothing that has a default, but for the changes; a null stays one."""
    bare = dict.fromkeys((*REQUIRED, "bos_token_id", "torch_dtype"))
    write_config(folder, **bare, num_attention_heads=32, hidden_size=512, num_hidden_layers=4)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    config |= {"architectures": [architecture], "model_type": MODEL_TYPES[architecture]}
    file.write_text(json.dumps(config))
    reference: Any = AutoConfig
    return ModelSpec.from_folder(folder), reference.from_pretrained(folder)


def windows_of(config: Any, architecture: str) -> list[int | None]:
    layers = config.num_hidden_layers
    if architecture == "LlamaForCausalLM":
        return [None] * layers
    if architecture == "MistralForCausalLM":
        return [config.sliding_window] * layers
    kinds = config.layer_types
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


def frequencies_of(config: Any) -> tuple[torch.Tensor, float]:
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        config.rope_parameters["factor"] = 1.0
        kind = "linear"
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))


def check(spec: ModelSpec, config: Any, architecture: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    eos = config.eos_token_id
    assert spec.head_dim == head_dim
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.rms_norm_eps == config.rms_norm_eps
    assert spec.tied_embeddings == config.tie_word_embeddings
    assert spec.bos_token_id == config.bos_token_id
    assert list(spec.eos_token_ids) == (eos if isinstance(eos, list) else [eos] if eos else [])
    assert spec.context_length >= config.max_position_embeddings
    hidden = spec.context_length  # a window that wide hides nothing
    windows = [w if w and w < hidden else None for w in windows_of(config, architecture)]
    assert list(spec.layer_windows) == windows
    frequencies, attention_factor = frequencies_of(config)
    mine = inverse_frequencies(spec.rope, spec.head_dim)
    assert torch.allclose(mine, frequencies, rtol=1e-5, atol=0)
    assert spec.rope.attention_factor == pytest.approx(attention_factor)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_defaults_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    check(*read_both(tmp_path, architecture, {}), architecture)


WRITTEN: dict[str, st.SearchStrategy[Any]] = {
    "num_key_value_heads": st.sampled_from([None, 1, 8, 32]),
    "head_dim": st.sampled_from([16, 24, 96]),
    "max_position_embeddings": st.integers(64, 200_000),
    "rms_norm_eps": st.sampled_from([1e-6, 1e-5]),
    "tie_word_embeddings": st.booleans(),
    "bos_token_id": st.sampled_from([None, 5]),
    "eos_token_id": st.sampled_from([None, 7, [8, 9]]),
    "sliding_window": st.sampled_from([None, 1, 63, 4096]),
    "use_sliding_window": st.booleans(),
    "max_window_layers": st.integers(0, 6),
    "rope_theta": st.sampled_from([500.0, 1e6]),
}
FACTORS = st.floats(1, 40)
ORIGINALS = st.integers(16, 40_000)
LINEAR = st.fixed_dictionaries({"type": st.just("linear"), "factor": FACTORS})
LLAMA3 = st.fixed_dictionaries(
    {
        "rope_type": st.just("llama3"),
        "factor": FACTORS,
        "low_freq_factor": st.sampled_from([0.5, 1.0]),
        "high_freq_factor": st.sampled_from([4.0, 8.0]),
    },
    optional={"original_max_position_embeddings": ORIGINALS},
)
YARN = st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": FACTORS},
    optional={
        "original_max_position_embeddings": ORIGINALS,
        "attention_factor": st.floats(0.5, 2),
        "beta_fast": st.sampled_from([None, 0, 8, 40.0]),
        "beta_slow": st.sampled_from([None, 0.5, 2]),
        "mscale": st.sampled_from([0, 1.0, 0.7]),
        "mscale_all_dim": st.sampled_from([0, 1.0, 0.8]),
        "truncate": st.booleans(),
    },
)


@settings(deadline=None, max_examples=120)
@given(
    architecture=st.sampled_from(list(FAMILIES)),
    written=st.fixed_dictionaries({}, optional=WRITTEN),
    rope=st.none() | LINEAR | LLAMA3 | YARN,
    new_spelling=st.booleans(),
)
def test_what_is_written_is_read_as_transformers_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    architecture: str,
    written: dict[str, Any],
    rope: dict[str, Any] | None,
    new_spelling: bool,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    changes = dict(written)
    if architecture == "MistralForCausalLM" and changes.get("num_key_value_heads", 1) is None:
        del changes["num_key_value_heads"]  # the one family whose reference refuses a null
    if rope is not None and new_spelling:
        theta = changes.pop("rope_theta", 1e4)
        changes["rope_parameters"] = rope | {"rope_theta": theta}
    elif rope is not None:
        changes["rope_scaling"] = rope
    check(*read_both(folder, architecture, changes), architecture)


def test_layers_can_be_named_one_by_one(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    changes = {"use_sliding_window": True, "sliding_window": 9, "layer_types": kinds}
    for architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        spec, config = read_both(tmp_path, architecture, changes)
        check(spec, config, architecture)
        assert spec.layer_windows == (None, 9, 9, None)


@pytest.mark.parametrize(
    ("architecture", "shape", "parameters"),
    [  # hidden, intermediate, layers, heads, KV heads, vocabulary, tied; as published
        ("LlamaForCausalLM", (2048, 8192, 16, 32, 8, 128_256, True), 1_235_814_400),
        ("MistralForCausalLM", (4096, 14_336, 32, 32, 8, 32_000, False), 7_241_732_096),
        ("Qwen2ForCausalLM", (896, 4864, 24, 14, 2, 151_936, True), 494_032_768),
        ("Qwen3ForCausalLM", (1024, 3072, 28, 16, 8, 151_936, True), 596_049_920),
    ],
)
def test_known_models_have_the_size_that_is_known(
    tmp_path: Path, architecture: str, shape: tuple[int, ...], parameters: int
) -> None:
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    changes: dict[str, Any] = dict(zip(keys, shape, strict=True))
    folder = write_config(tmp_path, architectures=[architecture], **changes)
    assert count_parameters(ModelSpec.from_folder(folder)) == parameters


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = (*WRITTEN, "hidden_size", "num_hidden_layers", "layer_types", "hidden_act", "dtype")
ROPES = st.dictionaries(
    st.sampled_from(["rope_type", "type", "factor", "rope_theta", "beta_fast", "truncate"]),
    st.sampled_from(["linear", "llama3", "yarn"]) | JSON,
)


@settings(deadline=None, max_examples=200)
@given(
    architecture=st.sampled_from(list(FAMILIES)),
    written=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    rope=ROPES | JSON,
)
def test_whatever_is_written_is_read_or_refused_by_file_and_reason(
    tmp_path_factory: pytest.TempPathFactory, architecture: str, written: dict[str, Any], rope: Any
) -> None:
    folder = write_config(tmp_path_factory.mktemp("model"))
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"rope_scaling": rope} | written
    file.write_text(json.dumps(config | {"architectures": [architecture]}))
    try:
        spec = ModelSpec.from_folder(folder)
    except ModelFolderError as error:
        assert str(error).startswith(f"{file}: ")
    else:
        assert len(spec.layer_windows) == spec.num_layers
        assert spec.weight_bytes("float32") > 0
        assert spec.context_length > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types must be a list of 2"),
        ({"layer_types": ["full_attention", "mamba"]}, "layer type 'mamba' is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "needs use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a positive"),
        ({"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
        ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_config(tmp_path, architectures=["Qwen3ForCausalLM"], **changes)
    with pytest.raises(ModelFolderError, match=message):
        ModelSpec.from_folder(folder)


def test_scaled_ropes_stretch_the_context(tmp_path: Path) -> None:
    def length(**rope: Any) -> int:
        folder = write_config(tmp_path, max_position_embeddings=512, rope_scaling=rope)
        return ModelSpec.from_folder(folder).context_length

    assert length(type="linear", factor=4) == 2048
    assert length(type="yarn", factor=4, original_max_position_embeddings=512) == 2048
    assert length(type="yarn", factor=4, original_max_position_embeddings=64) == 512
    assert length(type="linear", factor=1e12) == 2**31 - 1


def test_the_attention_factor_scales_cosines_and_sines() -> None:
    positions, device = torch.tensor([0, 3]), CpuDevice()
    plain = Rotary(RopeSpec(), 8, device).angles(positions)
    scaled = Rotary(RopeSpec(attention_factor=1.5), 8, device).angles(positions)
    for one, other in zip(plain, scaled, strict=True):
        assert torch.allclose(one * 1.5, other)
