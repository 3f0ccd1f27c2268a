"""The tensors of one rank: slices are read from the files, never the rest of a tensor."""

import re
from pathlib import Path

import torch

from deepflow.core.parallel import Share
from services.task_executor.weights.cut import Cut
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_TABLE, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_SUMMED_BIASES = ("o_proj.bias", "down_proj.bias")


class ShareFolder(SafetensorsFolder):
    """Asked for a tensor in the shape of the share, it answers with the share of the tensor."""

    def __init__(
        self, path: str | Path, device: torch.device, dtype: torch.dtype, share: Share
    ) -> None:
        super().__init__(path, device, dtype)
        self._share = share

    def _cut(self, name: str) -> Cut | None:
        return cut_of(self._share, name)

    def _is_elsewhere(self, name: str) -> bool:
        return is_elsewhere(self._share, name)


def cut_of(share: Share, name: str) -> Cut | None:
    """By outputs what makes heads, inner values and logits; by inputs what is summed after it."""
    whole, width = share.whole, share.whole.head_dim
    kind, _, piece = name.rpartition(".")
    match kind.rpartition(".")[2], piece:
        case "q_proj", _:
            return _cut(0, share.heads, whole.num_heads, width)
        case (("k_proj" | "v_proj"), _):
            return _cut(0, share.kv_heads, whole.num_kv_heads, width)
        case (("gate_proj" | "up_proj"), _):
            return _cut(0, share.inner, whole.intermediate_size)
        case "o_proj", "weight":
            return _cut(1, share.heads, whole.num_heads, width)
        case "down_proj", "weight":
            return _cut(1, share.inner, whole.intermediate_size)
        case (("embed_tokens" | "lm_head"), _):
            return _cut(0, share.words, whole.vocab_size)
    return None


def is_elsewhere(share: Share, name: str) -> bool:
    place = share.place
    if layer := _LAYER.match(name):
        is_added_elsewhere = place.part > 0 and name.endswith(_SUMMED_BIASES)
        return int(layer[1]) not in share.layers or is_added_elsewhere
    if name in (_TABLE, _HEAD):
        return place.layout.pipeline > 1  # one is used by the first stage, one by the last
    return name == _NORM and not place.is_last_stage


def _cut(axis: int, part: range, whole: int, width: int = 1) -> Cut:
    return Cut(axis, range(part.start * width, part.stop * width), whole * width)
