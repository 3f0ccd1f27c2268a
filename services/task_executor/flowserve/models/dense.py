"""The dense decoder: RMS norms, grouped-query attention with rotary positions, a gated MLP.

What families differ in stands in the ModelSpec: biases, norms of heads, windows, activation.

All tokens of a step run as one flat batch; only attention knows which sequence they belong to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionStep, Device, LayerKv
from services.task_executor.flowserve.layers.activation import ACTIVATIONS
from services.task_executor.flowserve.layers.head_norm import HeadNorm
from services.task_executor.flowserve.layers.rms_norm import RmsNorm
from services.task_executor.flowserve.layers.rotary import Rotary, rotate
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

Linear = Callable[[torch.Tensor], torch.Tensor]
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_REDUNDANT = ("rotary_emb.inv_freq",)  # old checkpoints store it; it follows from the config


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    attention_norm: RmsNorm
    qkv: Linear  # hidden -> queries, keys, values, fused
    head_norm: HeadNorm | None  # of queries and keys, before they are turned
    window: int | None
    output: Linear
    mlp_norm: RmsNorm
    gate_up: Linear  # hidden -> gate and up, fused
    down: Linear


class DenseDecoder:
    def __init__(
        self,
        spec: ModelSpec,
        embedding: torch.Tensor,  # [vocab, hidden]
        layers: list[DecoderLayer],
        norm: RmsNorm,
        head: Linear,
        rotary: Rotary,
    ) -> None:
        self._spec = spec
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._rotary = rotary
        self._activation = ACTIVATIONS[spec.activation]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        kv: list[LayerKv],
    ) -> torch.Tensor:
        hidden = F.embedding(token_ids, self._embedding)
        angles = self._rotary.angles(positions, hidden.dtype)
        for layer, layer_kv in zip(self._layers, kv, strict=True):
            normed = layer.attention_norm(hidden)
            hidden = hidden + self._attend(layer, normed, angles, attention, layer_kv)
            hidden = hidden + self._mlp(layer, layer.mlp_norm(hidden))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._head(self._norm(hidden)).float()

    def _attend(
        self,
        layer: DecoderLayer,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionStep,
        kv: LayerKv,
    ) -> torch.Tensor:
        queries, keys = self._spec.num_heads, self._spec.num_kv_heads
        heads = layer.qkv(hidden).view(len(hidden), -1, self._spec.head_dim)
        # Queries and keys turn alike, so in one go.
        turning, values = heads[:, : queries + keys], heads[:, -keys:]
        if layer.head_norm is not None:
            turning = layer.head_norm(turning)
        turned = rotate(turning, angles)
        attended = attention(turned[:, :queries], turned[:, queries:], values, kv, layer.window)
        return layer.output(attended.flatten(1))

    def _mlp(self, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
        return layer.down(self._activation(gate) * up)


def load_dense(spec: ModelSpec, weights: SafetensorsFolder, device: Device) -> DenseDecoder:
    return _Loader(spec, weights, device).load()


class _Loader:
    def __init__(self, spec: ModelSpec, weights: SafetensorsFolder, device: Device) -> None:
        self._spec = spec
        self._weights = weights
        self._device = device

    def load(self) -> DenseDecoder:
        spec = self._spec
        embedding, head = self._tables()
        layers = [self._layer(index) for index in range(spec.num_layers)]
        norm = self._norm("model.norm.weight")
        self._weights.check_all_taken(ignored=_REDUNDANT)
        return DenseDecoder(
            spec,
            embedding,
            layers,
            norm,
            self._device.pack_linear(head),
            Rotary(spec.rope, spec.head_dim, self._device.torch_device),
        )

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tied tables are stored as either of the two, or as both; where those differ, the
        weights are believed and not the config."""
        spec, stored = self._spec, self._weights
        shape = (spec.vocab_size, spec.hidden_size)
        if not spec.tied_embeddings or (_TABLE in stored and _HEAD in stored):
            table, head = stored.take(_TABLE, shape), stored.take(_HEAD, shape)
            is_one = spec.tied_embeddings and torch.equal(table, head)
            return table, table if is_one else head
        table = stored.take(_HEAD if _HEAD in stored else _TABLE, shape)
        return table, table

    def _layer(self, index: int) -> DecoderLayer:
        spec, prefix = self._spec, f"model.layers.{index}."
        hidden, inner = spec.hidden_size, spec.intermediate_size
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = [("q_proj", spec.q_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size)]
        gate_up = [("gate_proj", inner), ("up_proj", inner)]
        return DecoderLayer(
            attention_norm=self._norm(prefix + "input_layernorm.weight"),
            qkv=self._linear(attention, qkv, hidden, spec.qkv_bias),
            head_norm=self._head_norm(attention) if spec.has_head_norms else None,
            window=spec.layer_windows[index],
            output=self._linear(attention, [("o_proj", hidden)], spec.q_size, spec.output_bias),
            mlp_norm=self._norm(prefix + "post_attention_layernorm.weight"),
            gate_up=self._linear(mlp, gate_up, hidden, spec.mlp_bias),
            down=self._linear(mlp, [("down_proj", hidden)], inner, spec.mlp_bias),
        )

    def _linear(
        self, prefix: str, parts: list[tuple[str, int]], inputs: int, has_bias: bool
    ) -> Linear:
        """Fuse the parts, each (name, outputs), into one linear."""
        take = self._weights.take
        weights = [take(f"{prefix}{name}.weight", (size, inputs)) for name, size in parts]
        bias = None
        if has_bias:
            bias = torch.cat([take(f"{prefix}{name}.bias", (size,)) for name, size in parts])
        return self._device.pack_linear(torch.cat(weights), bias)

    def _norm(self, name: str) -> RmsNorm:
        weight = self._weights.take(name, (self._spec.hidden_size,))
        return RmsNorm(weight, self._spec.rms_norm_eps)

    def _head_norm(self, prefix: str) -> HeadNorm:
        spec, shape = self._spec, (self._spec.head_dim,)
        queries = self._weights.take(prefix + "q_norm.weight", shape)
        keys = self._weights.take(prefix + "k_norm.weight", shape)
        weights = [queries.expand(spec.num_heads, -1), keys.expand(spec.num_kv_heads, -1)]
        return HeadNorm(torch.cat(weights), spec.rms_norm_eps)
