"""BERT and its kin: learned positions, attention both ways, layer norm behind every part.

All tokens of a step run as one flat batch; only attention knows which text they belong to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepflow.core.encoder_spec import EncoderSpec
from services.task_executor.devices.base import Device
from services.task_executor.flowserve.layers.layer_norm import LayerNorm
from services.task_executor.flowserve.layers.segments import Segments
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

Tensor = torch.Tensor
Linear = Callable[[Tensor], Tensor]
# Made for other tasks, or following from the config.
_UNUSED = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
)
# Folders of models with a head keep the encoder under its family's name.
_PREFIXES = ("", "bert.", "roberta.")


def _gelu_tanh(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class BertLayer:
    qkv: Linear  # hidden -> queries, keys, values, fused
    output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    mlp_norm: LayerNorm


class Bert:
    def __init__(
        self,
        spec: EncoderSpec,
        words: Tensor,  # [vocab, hidden]
        positions: Tensor,  # [context, hidden], the first token's row first
        norm: LayerNorm,
        layers: list[BertLayer],
    ) -> None:
        self._heads = (3, spec.num_heads, spec.head_dim)
        self._activation = _ACTIVATIONS[spec.activation]
        self._words = words
        self._positions = positions
        self._norm = norm
        self._layers = layers

    def forward(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """token_ids: int64 [tokens], the texts one after the other; answers [tokens, hidden]."""
        places = F.embedding(segments.positions(), self._positions)
        hidden = self._norm(F.embedding(token_ids, self._words) + places)
        for layer in self._layers:
            hidden = layer.attention_norm(hidden + self._attend(layer, hidden, segments))
            inner = self._activation(layer.up(hidden))
            hidden = layer.mlp_norm(hidden + layer.down(inner))
        return hidden

    def _attend(self, layer: BertLayer, hidden: Tensor, segments: Segments) -> Tensor:
        queries, keys, values = layer.qkv(hidden).view(-1, *self._heads).unbind(1)
        return layer.output(segments.attend(queries, keys, values).flatten(1))


def load_bert(spec: EncoderSpec, weights: SafetensorsFolder, device: Device) -> Bert:
    return _Loader(spec, weights, device).load()


class _Loader:
    def __init__(self, spec: EncoderSpec, weights: SafetensorsFolder, device: Device) -> None:
        self._spec = spec
        self._weights = weights
        self._device = device
        word = "embeddings.word_embeddings.weight"
        self._prefix = next((it for it in _PREFIXES if it + word in weights), "")

    def load(self) -> Bert:
        spec = self._spec
        words = self._table("word_embeddings", spec.vocab_size)
        positions = self._table("position_embeddings", spec.max_positions)
        # A text alone is always of the first type: its row goes into the positions once.
        kinds = self._table("token_type_embeddings", spec.type_vocab_size)
        end = spec.first_position + spec.context_length
        places = (positions[spec.first_position : end] + kinds[0]).contiguous()
        norm = self._norm("embeddings.LayerNorm")
        layers = [self._layer(f"encoder.layer.{index}.") for index in range(spec.num_layers)]
        self._weights.check_all_taken(ignored=_UNUSED)
        return Bert(spec, words, places, norm, layers)

    def _layer(self, prefix: str) -> BertLayer:
        hidden, inner = self._spec.hidden_size, self._spec.intermediate_size
        attention = prefix + "attention."
        qkv = [attention + f"self.{name}" for name in ("query", "key", "value")]
        return BertLayer(
            qkv=self._linear(qkv, hidden, hidden),
            output=self._linear([attention + "output.dense"], hidden, hidden),
            attention_norm=self._norm(attention + "output.LayerNorm"),
            up=self._linear([prefix + "intermediate.dense"], hidden, inner),
            down=self._linear([prefix + "output.dense"], inner, hidden),
            mlp_norm=self._norm(prefix + "output.LayerNorm"),
        )

    def _linear(self, names: list[str], inputs: int, outputs: int) -> Linear:
        """Fuse the named ones, each with that many outputs, into one."""
        weights = [self._take(f"{name}.weight", (outputs, inputs)) for name in names]
        biases = [self._take(f"{name}.bias", (outputs,)) for name in names]
        return self._device.pack_linear(torch.cat(weights), torch.cat(biases))

    def _norm(self, name: str) -> LayerNorm:
        shape = (self._spec.hidden_size,)
        weight, bias = self._take(f"{name}.weight", shape), self._take(f"{name}.bias", shape)
        return LayerNorm(weight, bias, self._spec.layer_norm_eps)

    def _table(self, name: str, rows: int) -> Tensor:
        return self._take(f"embeddings.{name}.weight", (rows, self._spec.hidden_size))

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._weights.take(self._prefix + name, shape)
