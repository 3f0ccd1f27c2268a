"""The shape of a model, read from its Hugging Face folder: no torch, no weights read."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import (
    ModelFolderError,
    TensorHeader,
    digest_folder,
    read_json,
    read_tensor_headers,
)

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_KINDS = ("default", "linear", "llama3")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding; the last four fields only matter to the kinds that scale."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


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
    rope: RopeSpec
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str
    parameters: int  # as stored in the folder; as the shape implies where it holds no weights

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelSpec":
        """Read config.json and, where present, generation_config.json and safetensors headers."""
        folder = Path(path)
        config = read_json(folder, "config.json")
        generation = {}
        if (folder / "generation_config.json").is_file():
            generation = read_json(folder, "generation_config.json")
        return _SpecReader(folder, config, generation).read()

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
    """What the shape implies, for a folder that holds a config and no weights."""
    hidden, q_size, kv_size = spec.hidden_size, spec.q_size, spec.kv_size
    attention = hidden * (2 * q_size + 2 * kv_size)
    if spec.attention_bias:
        attention += q_size + 2 * kv_size + hidden
    mlp = 3 * hidden * spec.intermediate_size
    if spec.mlp_bias:
        mlp += 2 * spec.intermediate_size + hidden
    layers = spec.num_layers * (attention + mlp + 2 * hidden)
    tables = spec.embedding_parameters * (1 if spec.tied_embeddings else 2)
    return layers + tables + hidden


class _SpecReader:
    """Turns the JSON of one folder into a ModelSpec; every error names the file and the key."""

    def __init__(self, folder: Path, config: dict[str, Any], generation: dict[str, Any]) -> None:
        self._folder = folder
        self._config = config
        self._generation = generation

    def read(self) -> ModelSpec:
        architecture = self._architecture()
        hidden_size, num_heads = self._size("hidden_size"), self._size("num_attention_heads")
        num_kv_heads = self._size("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise self._error(
                f"num_attention_heads ({num_heads}) is no multiple of "
                f"num_key_value_heads ({num_kv_heads})"
            )
        shape = ModelSpec(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=self._size("intermediate_size"),
            num_layers=self._size("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self._size("head_dim", hidden_size // num_heads),
            vocab_size=self._size("vocab_size"),
            context_length=self._size("max_position_embeddings", 2048),
            rms_norm_eps=self._number("rms_norm_eps", 1e-6),
            rope=self._rope(),
            tied_embeddings=self._flag("tie_word_embeddings"),
            attention_bias=self._flag("attention_bias"),
            mlp_bias=self._flag("mlp_bias"),
            bos_token_id=self._bos(),
            eos_token_ids=self._eos(),
            dtype=self._dtype(),
            parameters=0,
        )
        return _with_parameters(shape, read_tensor_headers(self._folder))

    def _architecture(self) -> str:
        names = self._config.get("architectures") or []
        if not isinstance(names, list) or not names:
            raise self._error("architectures is missing")
        if names[0] not in SUPPORTED_ARCHITECTURES:
            raise self._error(
                f"architecture {names[0]!r} is not supported; "
                f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        activation = self._config.get("hidden_act", "silu")
        if activation != "silu":
            raise self._error(f"hidden_act {activation!r} is not supported; supported: silu")
        return str(names[0])

    def _rope(self) -> RopeSpec:
        """`rope_parameters` since transformers 5; `rope_theta` and `rope_scaling` before."""
        rope = self._object("rope_parameters") or self._object("rope_scaling")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ROPE_KINDS:
            raise self._error(
                f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}"
            )
        if self._config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1:
            raise self._error("partial_rotary_factor other than 1 is not supported")

        def number(key: str, default: float) -> float:
            return self._as_number(key, rope.get(key, default))

        needed = {"linear": ("factor",), "llama3": ("factor", "original_max_position_embeddings")}
        for key in needed.get(kind, ()):
            if key not in rope:
                raise self._error(f"rope type {kind!r} needs {key}")
        return RopeSpec(
            kind=kind,
            theta=number("rope_theta", self._number("rope_theta", 10_000.0)),
            factor=number("factor", 1.0),
            low_freq_factor=number("low_freq_factor", 1.0),
            high_freq_factor=number("high_freq_factor", 4.0),
            original_context_length=int(number("original_max_position_embeddings", 8192)),
        )

    def _bos(self) -> int | None:
        ids = self._ids(self._generation, "bos_token_id") or self._ids(self._config, "bos_token_id")
        return ids[0] if ids else None

    def _eos(self) -> tuple[int, ...]:
        """The generation config wins: chat models end a turn there, not at the end of a text."""
        return self._ids(self._generation, "eos_token_id") or self._ids(
            self._config, "eos_token_id"
        )

    def _ids(self, source: dict[str, Any], key: str) -> tuple[int, ...]:
        value = source.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise self._error(f"{key} must hold token ids, not {value!r}")
        return tuple(dict.fromkeys(ids))

    def _dtype(self) -> str:
        """`dtype` since transformers 5, `torch_dtype` before."""
        name = self._config.get("dtype") or self._config.get("torch_dtype") or "float32"
        if name not in DTYPE_BYTES:
            raise self._error(
                f"dtype {name!r} is not supported; supported: {', '.join(DTYPE_BYTES)}"
            )
        return str(name)

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            raise self._error(f"{key} is missing")
        if type(value) is not int or value < 1:
            raise self._error(f"{key} must be a positive integer, not {value!r}")
        return value

    def _number(self, key: str, default: float) -> float:
        return self._as_number(key, self._config.get(key, default))

    def _as_number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self._error(f"{key} must be a positive number, not {value!r}")
        return float(value)

    def _flag(self, key: str) -> bool:
        value = self._config.get(key, False)
        if not isinstance(value, bool):
            raise self._error(f"{key} must be true or false, not {value!r}")
        return value

    def _object(self, key: str) -> dict[str, Any]:
        value = self._config.get(key) or {}
        if not isinstance(value, dict):
            raise self._error(f"{key} must be an object, not {value!r}")
        return value

    def _error(self, message: str) -> ModelFolderError:
        return ModelFolderError(f"{self._folder / 'config.json'}: {message}")


def _with_parameters(spec: ModelSpec, headers: list[TensorHeader]) -> ModelSpec:
    stored = sum(header.elements for header in headers)
    return replace(spec, parameters=stored or count_parameters(spec))
