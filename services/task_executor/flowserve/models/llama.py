"""Llama: RMS norm, grouped-query attention with rotary positions, gated SiLU MLP.

All tokens of a step run as one flat batch; only attention knows which sequence they belong to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionStep, Device, LayerKv
from services.task_executor.flowserve.layers.rms_norm import RmsNorm
from services.task_executor.flowserve.layers.rotary import Rotary, rotate
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

Linear = Callable[[torch.Tensor], torch.Tensor]
# Old checkpoints store these; both follow from the config.
_REDUNDANT = ("rotary_emb.inv_freq", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    attention_norm: RmsNorm
    qkv: Linear  # hidden -> queries, keys, values, fused
    output: Linear
    mlp_norm: RmsNorm
    gate_up: Linear  # hidden -> gate and up, fused
    down: Linear


class Llama:
    def __init__(
        self,
        spec: ModelSpec,
        embedding: torch.Tensor,  # [vocab, hidden]
        layers: list[LlamaLayer],
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

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        kv: list[LayerKv],
        sampled: torch.Tensor,
    ) -> torch.Tensor:
        hidden = F.embedding(token_ids, self._embedding)
        angles = self._rotary.angles(positions, hidden.dtype)
        for layer, layer_kv in zip(self._layers, kv, strict=True):
            normed = layer.attention_norm(hidden)
            hidden = hidden + self._attend(layer, normed, angles, attention, layer_kv)
            hidden = hidden + _mlp(layer, layer.mlp_norm(hidden))
        return self._head(self._norm(hidden[sampled])).float()

    def _attend(
        self,
        layer: LlamaLayer,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionStep,
        kv: LayerKv,
    ) -> torch.Tensor:
        queries, keys = self._spec.num_heads, self._spec.num_kv_heads
        heads = layer.qkv(hidden).view(len(hidden), -1, self._spec.head_dim)
        # Queries and keys turn alike, so in one go.
        turned = rotate(heads[:, : queries + keys], angles)
        attended = attention(turned[:, :queries], turned[:, queries:], heads[:, -keys:], kv)
        return layer.output(attended.flatten(1))


def _mlp(layer: LlamaLayer, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)


def load_llama(spec: ModelSpec, weights: SafetensorsFolder, device: Device) -> Llama:
    return _Loader(spec, weights, device).load()


class _Loader:
    def __init__(self, spec: ModelSpec, weights: SafetensorsFolder, device: Device) -> None:
        self._spec = spec
        self._weights = weights
        self._device = device

    def load(self) -> Llama:
        spec = self._spec
        table = (spec.vocab_size, spec.hidden_size)
        embedding = self._weights.take("model.embed_tokens.weight", table)
        layers = [self._layer(f"model.layers.{index}.") for index in range(spec.num_layers)]
        norm = self._norm("model.norm.weight")
        head = embedding if spec.tied_embeddings else self._weights.take("lm_head.weight", table)
        self._weights.check_all_taken(ignored=_REDUNDANT)
        return Llama(
            spec,
            embedding,
            layers,
            norm,
            self._device.pack_linear(head),
            Rotary(spec.rope, spec.head_dim, self._device.torch_device),
        )

    def _layer(self, prefix: str) -> LlamaLayer:
        spec = self._spec
        hidden, inner = spec.hidden_size, spec.intermediate_size
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = [("q_proj", spec.q_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size)]
        gate_up = [("gate_proj", inner), ("up_proj", inner)]
        return LlamaLayer(
            attention_norm=self._norm(prefix + "input_layernorm.weight"),
            qkv=self._linear(attention, qkv, hidden, spec.attention_bias),
            output=self._linear(attention, [("o_proj", hidden)], spec.q_size, spec.attention_bias),
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
