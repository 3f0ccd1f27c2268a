"""What a device must offer to run a model: memory for KV, attention over it, linear layers.

KV layout on every device: per layer one K and one V tensor [blocks, block_size, kv_heads,
head_dim], 2 MiB aligned, block 0 the trash block. Devices that torch does not drive (emulated
ones) do not implement this.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only annotations: listing devices must not cost an import of torch
    import torch


@dataclass(frozen=True, slots=True)
class KvShape:
    num_layers: int
    blocks: int
    block_size: int
    kv_heads: int
    head_dim: int

    @property
    def layer_shape(self) -> tuple[int, int, int, int]:
        return (self.blocks, self.block_size, self.kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class LayerKv:
    keys: "torch.Tensor"  # [blocks, block_size, kv_heads, head_dim]
    values: "torch.Tensor"  # likewise


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Where the tokens of a step stand, on the host: entry i owns counts[i] flattened tokens."""

    block_size: int
    counts: Sequence[int]  # tokens of each entry, in order
    lengths: Sequence[int]  # context length of each entry, its tokens of this step included
    block_tables: "torch.Tensor"  # int32 [entries, max_blocks], on the host
    slots: "torch.Tensor"  # int64 [tokens], block * block_size + offset, on the host


class AttentionStep(ABC):
    """Attention for one step; every layer calls it with its own KV."""

    @abstractmethod
    def __call__(
        self,
        queries: "torch.Tensor",  # [tokens, heads, head_dim]
        keys: "torch.Tensor",  # [tokens, kv_heads, head_dim]
        values: "torch.Tensor",  # likewise
        kv: LayerKv,
        window: int | None,  # how many tokens back a token sees, itself included
    ) -> "torch.Tensor":
        """Write keys and values to their slots, then attend causally: [tokens, heads, head_dim].

        No window: every token back to the first. What layers of one window share is worked out
        once.

        A block written from its first slot on is wiped before: a NaN that an earlier owner left
        there would reach the new one through masked positions.
        """


class Device(ABC):
    """One accelerator of one process. Tensors that go in and come out live on torch_device."""

    name: str
    block_size: int  # what its kernels want
    torch_device: "torch.device"
    dtype: "torch.dtype"  # weights, activations and KV

    @abstractmethod
    def memory_available(self) -> int:
        """Bytes that this process may still take where weights and KV lie."""

    @abstractmethod
    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        """Zeroed KV memory, one entry per layer."""

    @abstractmethod
    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        """Work out once what all layers of a step share: indexes and masks."""

    @abstractmethod
    def pack_linear(
        self, weight: "torch.Tensor", bias: "torch.Tensor | None" = None
    ) -> "Callable[[torch.Tensor], torch.Tensor]":
        """A linear layer [rows, in] -> [rows, out] from a weight [out, in]."""
