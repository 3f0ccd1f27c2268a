"""The dense decoder: RMS norms, grouped-query attention with rotary positions, a gated MLP.

What families differ in stands in the ModelSpec: biases, norms of heads, windows, activation.

All tokens of a step run as one flat batch; only attention knows which sequence they belong to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionStep, Device, LayerKv
from services.task_executor.flowserve.layers.gated import Gated, gated_activation
from services.task_executor.flowserve.layers.head_norm import HeadNorm
from services.task_executor.flowserve.layers.rms_norm import RmsNorm
from services.task_executor.flowserve.layers.rotary import Rotary
from services.task_executor.flowserve.models.split import Entry, Split, Whole
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
        entry: Entry,
        layers: list[DecoderLayer],
        norm: RmsNorm | None,  # it and the head: of the last stage
        head: Linear | None,
        rotary: Rotary,
        activation: Gated,
    ) -> None:
        self._spec = spec
        self._entry = entry
        self._layers = layers
        self._norm = norm
        self._head = head
        self._rotary = rotary
        self._activation = activation

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        kv: list[LayerKv],
    ) -> torch.Tensor:
        hidden = self._entry(token_ids)
        angles = self._rotary.angles(positions)
        # What a part answers is added where the next norm reads it: devices do both at once.
        added: torch.Tensor | None = None
        for layer, layer_kv in zip(self._layers, kv, strict=True):
            if added is None:
                normed = layer.attention_norm(hidden)
            else:
                normed, hidden = layer.attention_norm.of_sum(added, hidden)
            attended = self._attend(layer, normed, angles, attention, layer_kv)
            normed, hidden = layer.mlp_norm.of_sum(attended, hidden)
            added = layer.down(self._activation(layer.gate_up(normed)))
        return hidden if added is None else hidden + added

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._norm is not None and self._head is not None, "the head is on a later stage"
        return self._head(self._norm(hidden)).float()

    def _attend(
        self,
        layer: DecoderLayer,
        hidden: torch.Tensor,
        angles: Any,
        attention: AttentionStep,
        kv: LayerKv,
    ) -> torch.Tensor:
        queries, keys = self._spec.num_heads, self._spec.num_kv_heads
        heads = layer.qkv(hidden).view(len(hidden), -1, self._spec.head_dim)
        # Queries and keys turn alike, so in one go.
        turning, values = heads[:, : queries + keys], heads[:, -keys:]
        if layer.head_norm is not None:
            turning = layer.head_norm(turning)
        turned = self._rotary.rotate(turning, angles)
        attended = attention(turned[:, :queries], turned[:, queries:], values, kv, layer.window)
        return layer.output(attended.flatten(1))


def load_dense(
    spec: ModelSpec, weights: SafetensorsFolder, device: Device, split: Split | None = None
) -> DenseDecoder:
    """Where it is split, `spec` is what this rank holds."""
    return _Loader(spec, weights, device, split or Whole()).load()


class _Loader:
    def __init__(
        self, spec: ModelSpec, weights: SafetensorsFolder, device: Device, split: Split
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._device = device
        self._split = split

    def load(self) -> DenseDecoder:
        spec, split = self._spec, self._split
        table, head = self._tables()
        layers = [self._layer(index) for index in range(spec.num_layers)]
        norm = self._norm("model.norm.weight") if split.has_head else None
        self._weights.check_all_taken(ignored=_REDUNDANT)
        return DenseDecoder(
            spec,
            split.receive() if table is None else split.look_up(table),
            layers,
            norm,
            None if head is None else split.gathered(self._device.pack_linear(head)),
            Rotary(spec.rope, spec.head_dim, self._device),
            gated_activation(spec.activation, self._device),
        )

    def _tables(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tied tables are stored as either of the two, or as both; where those differ, the
        weights are believed and not the config."""
        spec, stored, split = self._spec, self._weights, self._split
        shape = (spec.vocab_size, spec.hidden_size)
        if not spec.tied_embeddings or (_TABLE in stored and _HEAD in stored):
            table = stored.take(_TABLE, shape) if split.has_table else None
            head = stored.take(_HEAD, shape) if split.has_head else None
            if spec.tied_embeddings and table is not None and head is not None:
                head = table if torch.equal(table, head) else head
            return table, head
        if not (split.has_table or split.has_head):
            return None, None
        table = stored.take(_HEAD if _HEAD in stored else _TABLE, shape)
        return table if split.has_table else None, table if split.has_head else None

    def _layer(self, index: int) -> DecoderLayer:
        spec, split = self._spec, self._split
        prefix = f"model.layers.{split.first_layer + index}."
        hidden, inner = spec.hidden_size, spec.intermediate_size
        output_bias, mlp_bias = spec.output_bias, spec.mlp_bias
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = [("q_proj", spec.q_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size)]
        gate_up = [("gate_proj", inner), ("up_proj", inner)]
        return DecoderLayer(
            attention_norm=self._norm(prefix + "input_layernorm.weight"),
            qkv=self._linear(attention, qkv, hidden, spec.qkv_bias),
            head_norm=self._head_norm(attention) if spec.has_head_norms else None,
            window=spec.layer_windows[index],
            output=self._summed(attention, ("o_proj", hidden), spec.q_size, output_bias),
            mlp_norm=self._norm(prefix + "post_attention_layernorm.weight"),
            gate_up=self._linear(mlp, gate_up, hidden, mlp_bias),
            down=self._summed(mlp, ("down_proj", hidden), inner, mlp_bias),
        )

    def _summed(self, prefix: str, part: tuple[str, int], inputs: int, has_bias: bool) -> Linear:
        """A linear over what each rank has some of."""
        split = self._split
        return split.summed(self._linear(prefix, [part], inputs, has_bias and split.adds_biases))

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
        return RmsNorm(weight, self._spec.rms_norm_eps, self._device)

    def _head_norm(self, prefix: str) -> HeadNorm:
        spec, shape = self._spec, (self._spec.head_dim,)
        queries = self._weights.take(prefix + "q_norm.weight", shape)
        keys = self._weights.take(prefix + "k_norm.weight", shape)
        weights = [queries.expand(spec.num_heads, -1), keys.expand(spec.num_kv_heads, -1)]
        return HeadNorm(torch.cat(weights), spec.rms_norm_eps, self._device)
