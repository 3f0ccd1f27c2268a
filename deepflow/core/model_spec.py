"""The shape of a decoder, read from its Hugging Face folder: no torch, no weights read."""

from dataclasses import dataclass, replace
from pathlib import Path

from deepflow.core.config_values import ConfigValues
from deepflow.core.encoder_spec import ENCODER_ARCHITECTURES
from deepflow.core.families import FAMILIES
from deepflow.core.families.family import Family, read_flag
from deepflow.core.families.windows import LayerWindows
from deepflow.core.model_folder import (
    TensorHeader,
    digest_folder,
    read_json,
    read_tensor_headers,
)
from deepflow.core.rope_spec import RopeSpec, read_rope

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
LAYERS_MAX = 10_000
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    activation: str
    rope: RopeSpec
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    has_head_norms: bool
    layer_windows: LayerWindows  # how many tokens back each layer sees, itself included
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str  # of the weights as stored
    parameters: int  # as stored, a tied table once; as the shape implies where it holds no weights

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelSpec":
        """Read config.json and, where present, generation_config.json and safetensors headers."""
        folder = Path(path)
        config = ConfigValues(folder / "config.json", read_json(folder, "config.json"))
        name = "generation_config.json"
        written = read_json(folder, name) if (folder / name).is_file() else {}
        shape = _read_shape(config, ConfigValues(folder / name, written))
        return _with_parameters(shape, read_tensor_headers(folder))

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """One table of the vocabulary: a step reads one row a token of it, or all as the head."""
        return self.vocab_size * self.hidden_size

    def weight_bytes(self, dtype: str) -> int:
        """What a device holds that packs its linears: rows of a tied table are looked up in one
        copy and multiplied with another."""
        tied_head = self.embedding_parameters if self.tied_embeddings else 0
        return (count_parameters(self) + tied_head) * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """K and V of one token over all layers, on one device that holds the whole model."""
        return 2 * self.num_layers * self.kv_size * DTYPE_BYTES[dtype]


def model_revision(path: str | Path) -> str:
    """A digest of the config, the tokenizer files and the safetensors headers and sizes.

    Two folders with one revision give the same tokens and blocks, short of weights edited in
    place with nothing else changed: reading them all is not worth the start-up time.
    """
    return digest_folder(Path(path))


def count_parameters(spec: ModelSpec) -> int:
    """What the shape implies; a tied table counts once, also where the folder stores it twice."""
    hidden, q_size, kv_size = spec.hidden_size, spec.q_size, spec.kv_size
    attention = hidden * (2 * q_size + 2 * kv_size)
    if spec.qkv_bias:
        attention += q_size + 2 * kv_size
    if spec.output_bias:
        attention += hidden
    if spec.has_head_norms:
        attention += 2 * spec.head_dim
    mlp = 3 * hidden * spec.intermediate_size
    if spec.mlp_bias:
        mlp += 2 * spec.intermediate_size + hidden
    layers = spec.num_layers * (attention + mlp + 2 * hidden)
    tables = spec.embedding_parameters * (1 if spec.tied_embeddings else 2)
    return layers + tables + hidden


def _read_shape(config: ConfigValues, generation: ConfigValues) -> ModelSpec:
    family = _family(config)
    hidden_size = config.size("hidden_size")
    num_layers = config.size("num_hidden_layers", most=LAYERS_MAX)
    num_heads, num_kv_heads, head_dim = _heads(config, family, hidden_size)
    max_positions = config.size("max_position_embeddings", family.max_positions)
    rope = read_rope(config, max_positions)
    context_length = rope.context_length(max_positions)
    bos_token_ids = _ids("bos_token_id", generation, config, family.bos_token_id)
    return ModelSpec(
        architecture=family.architecture,
        hidden_size=hidden_size,
        intermediate_size=config.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.size("vocab_size"),
        context_length=context_length,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=rope,
        tied_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=read_flag(config, family.qkv_bias),
        output_bias=read_flag(config, family.output_bias),
        mlp_bias=read_flag(config, family.mlp_bias),
        has_head_norms=family.has_head_norms,
        layer_windows=_narrower(family.windows(config, num_layers), context_length),
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=_ids("eos_token_id", generation, config, family.eos_token_id),
        dtype=_dtype(config),
        parameters=0,
    )


def _family(config: ConfigValues) -> Family:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise config.error("architectures is missing")
    name = names[0]
    if not isinstance(name, str) or name not in FAMILIES:
        raise config.error(
            f"architecture {name!r} is not supported; supported: {', '.join(FAMILIES)}, "
            f"and for embeddings {', '.join(ENCODER_ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise config.error(
            "quantization_config: quantized weights are not supported; "
            f"supported: {', '.join(DTYPE_BYTES)}"
        )
    return FAMILIES[name]


def _heads(config: ConfigValues, family: Family, hidden_size: int) -> tuple[int, int, int]:
    """How many query heads, how many KV heads, and how wide each is."""
    num_heads = config.size("num_attention_heads")
    key = "num_key_value_heads"
    usual = num_heads if key in config or family.kv_heads is None else family.kv_heads
    num_kv_heads = config.size(key, usual)
    if num_heads % num_kv_heads:
        raise config.error(
            f"num_attention_heads ({num_heads}) is no multiple of {key} ({num_kv_heads})"
        )
    head_dim = config.size("head_dim", family.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise config.error(f"head_dim ({head_dim}) must be even: halves of a head turn together")
    return num_heads, num_kv_heads, head_dim


def _narrower(windows: LayerWindows, context_length: int) -> LayerWindows:
    """A window that holds the whole context hides nothing."""
    return tuple(w if w is not None and w < context_length else None for w in windows)


def _ids(
    key: str, generation: ConfigValues, config: ConfigValues, usual: int | None
) -> tuple[int, ...]:
    """The generation config wins: chat models end a turn there, not at the end of a text."""
    written = generation.token_ids(key) or config.token_ids(key)
    if written or key in config or usual is None:
        return written
    return (usual,)


def _dtype(config: ConfigValues) -> str:
    """`dtype` since transformers 5, `torch_dtype` before."""
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    return config.choice(key, tuple(DTYPE_BYTES), "float32", name="dtype")


def _with_parameters(spec: ModelSpec, headers: list[TensorHeader]) -> ModelSpec:
    stored = {header.name: header.elements for header in headers}
    if spec.tied_embeddings and "model.embed_tokens.weight" in stored:
        stored.pop("lm_head.weight", None)  # the same table again
    return replace(spec, parameters=sum(stored.values()) or count_parameters(spec))
