"""The shape of an encoder that turns texts into vectors, read from its folder: no torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError, read_json, read_tensor_headers
from deepflow.core.pooling_spec import MODULES_FILE, PoolingSpec, read_pooling

ENCODER_ARCHITECTURES = ("BertModel", "RobertaModel", "XLMRobertaModel")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
SENTENCE_FILE = "sentence_bert_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
# A tokenizer without a limit of its own says so with a number beyond any context.
NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    type_vocab_size: int
    max_positions: int  # rows of the position table
    first_position: int  # the row of a text's first token
    context_length: int  # tokens of one text, special tokens included
    layer_norm_eps: float
    activation: str
    pooling: PoolingSpec
    parameters: int  # as stored in the folder

    @classmethod
    def from_folder(cls, path: str | Path) -> "EncoderSpec":
        """Raises ModelFolderError, which names the file and what would be right."""
        return _Reader(Path(path)).read()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def embedding_size(self) -> int:
        return self.hidden_size


def is_encoder_folder(path: str | Path) -> bool:
    """Whether the folder says that it holds a model of vectors, servable or not."""
    folder = Path(path)
    architectures = read_json(folder, "config.json").get("architectures")
    named = isinstance(architectures, list) and architectures[:1]
    return bool(named and named[0] in ENCODER_ARCHITECTURES) or (folder / MODULES_FILE).is_file()


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = read_json(folder, "config.json")

    def read(self) -> EncoderSpec:
        architecture = self._architecture()
        self._require("position_embedding_type", ("absolute",), "absolute")
        self._require("is_decoder", (False,), False)
        hidden_size, num_heads = self._size("hidden_size"), self._size("num_attention_heads")
        if hidden_size % num_heads:
            raise self._error(
                f"hidden_size ({hidden_size}) is no multiple of num_attention_heads ({num_heads})"
            )
        max_positions = self._size("max_position_embeddings")
        first_position = 0 if architecture == "BertModel" else self._padding_row(max_positions) + 1
        return EncoderSpec(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=self._size("intermediate_size"),
            num_layers=self._size("num_hidden_layers"),
            num_heads=num_heads,
            vocab_size=self._size("vocab_size"),
            type_vocab_size=self._size("type_vocab_size", 2),
            max_positions=max_positions,
            first_position=first_position,
            context_length=self._context_length(max_positions - first_position),
            layer_norm_eps=self._epsilon(),
            activation=self._require("hidden_act", ACTIVATIONS, "gelu"),
            pooling=read_pooling(self._folder, hidden_size),
            parameters=sum(header.elements for header in read_tensor_headers(self._folder)),
        )

    def _architecture(self) -> str:
        names = self._config.get("architectures")
        if not isinstance(names, list) or not names:
            raise self._error("architectures is missing")
        if names[0] not in ENCODER_ARCHITECTURES:
            raise self._error(
                f"architecture {names[0]!r} is not supported for embeddings; "
                f"supported: {', '.join(ENCODER_ARCHITECTURES)}"
            )
        return str(names[0])

    def _padding_row(self, max_positions: int) -> int:
        """RoBERTa counts positions from behind the padding token's row."""
        row = self._config.get("pad_token_id", 1)
        if type(row) is not int or not 0 <= row < max_positions - 1:
            raise self._error(f"pad_token_id must be from 0 to {max_positions - 2}, not {row!r}")
        return row

    def _context_length(self, room: int) -> int:
        """What the author says of sentences, else what tokenizer and positions allow."""
        sentence = self._optional(SENTENCE_FILE)
        if sentence.get("do_lower_case"):
            raise ModelFolderError(
                f"{self._folder / SENTENCE_FILE}: do_lower_case is not supported here; "
                "a tokenizer.json whose normalizer lowercases is"
            )
        said = sentence.get("max_seq_length")
        name, key = SENTENCE_FILE, "max_seq_length"
        if said is None:
            said = self._optional(TOKENIZER_FILE).get("model_max_length")
            name, key = TOKENIZER_FILE, "model_max_length"
        if said is None or (isinstance(said, int | float) and said > NO_LIMIT):
            return room
        if type(said) is not int or said < 1:
            raise ModelFolderError(
                f"{self._folder / name}: {key} must be a positive integer, not {said!r}"
            )
        return min(said, room)

    def _optional(self, name: str) -> dict[str, Any]:
        return read_json(self._folder, name) if (self._folder / name).is_file() else {}

    def _require(self, key: str, supported: tuple[Any, ...], default: Any) -> Any:
        value = self._config.get(key, default)
        if value not in supported:
            raise self._error(
                f"{key} {value!r} is not supported; supported: {', '.join(map(str, supported))}"
            )
        return value

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key, default)
        if value is None:
            raise self._error(f"{key} is missing")
        if type(value) is not int or value < 1:
            raise self._error(f"{key} must be a positive integer, not {value!r}")
        return value

    def _epsilon(self) -> float:
        value = self._config.get("layer_norm_eps", 1e-12)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self._error(f"layer_norm_eps must be a positive number, not {value!r}")
        return float(value)

    def _error(self, message: str) -> ModelFolderError:
        return ModelFolderError(f"{self._folder / 'config.json'}: {message}")
