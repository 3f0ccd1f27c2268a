"""What a device must offer to run a model: memory for KV, attention over it, linear layers, and
the small operations around them, so that it may fuse these.

KV layout on every device: per layer one K and one V tensor [blocks, block_size, kv_heads,
head_dim], 2 MiB aligned, block 0 the trash block. Devices that torch does not drive (emulated
ones) do not implement this. `plain.py` has every operation that has an answer in plain torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deepflow.core.model_spec import ModelSpec

if TYPE_CHECKING:  # only annotations: listing devices must not cost an import of torch
    import numpy as np
    import torch

ALIGNMENT = 2 << 20  # of KV buffers: what every transfer can register


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

    inputs: AttentionInputs  # what it was begun with

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


class Event(Protocol):
    """A place in the work of a stream."""

    def is_done(self) -> bool: ...

    def wait(self) -> None:
        """Hold the calling thread until the stream has come so far."""


class Stream(Protocol):
    """Work of the device in order; two streams run beside each other."""

    def active(self) -> AbstractContextManager[None]:
        """What this thread starts inside goes to this stream."""

    def record(self) -> Event:
        """Behind everything that was given to this stream so far."""

    def follow(self, event: Event) -> None:
        """What this stream is given from now on starts after the event; nobody waits."""


class HostCopy(Protocol):
    """A tensor on its way to the host."""

    def is_ready(self) -> bool: ...

    def get(self) -> "torch.Tensor":
        """The tensor on the host; waits for it where it must."""


class DecodeGraph(Protocol):
    """One decode step of a fixed number of rows, captured: a replay starts it as a whole."""

    def replay(
        self, token_ids: "torch.Tensor", positions: "torch.Tensor", inputs: AttentionInputs
    ) -> "torch.Tensor":
        """For as many rows as it has, or fewer, of one token each: [rows, hidden].

        The result is overwritten by the next replay of any graph of the same device.
        """


# Token ids, positions and attention of a step to its hidden states.
Forward = Callable[["torch.Tensor", "torch.Tensor", AttentionStep], "torch.Tensor"]


class Device(ABC):
    """One accelerator of one process. Tensors that go in and come out live on torch_device."""

    name: str
    block_size: int  # what its kernels want
    torch_device: "torch.device"
    dtype: "torch.dtype"  # activations and KV; weights too, where they are not quantised
    collectives: str  # what torch.distributed calls its backend
    graph_rows_max: int  # of a captured decode step; 0 where it captures none

    @abstractmethod
    def check_model(self, spec: ModelSpec) -> None:
        """Raises ValueError, which says why, where its kernels cannot run such a model."""

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
        """A linear layer [rows, in] -> [rows, out] from a weight [out, in].

        A device opened with dtype int8 quantises the weight by output channel, and activations
        by token while it runs: a row's result never depends on the rows beside it.
        """

    @abstractmethod
    def rms_norm(
        self, inputs: "torch.Tensor", weight: "torch.Tensor | None", epsilon: float
    ) -> "torch.Tensor":
        """Over the last dimension; no weight is a weight of ones."""

    @abstractmethod
    def add_rms_norm(
        self,
        inputs: "torch.Tensor",
        residual: "torch.Tensor",
        weight: "torch.Tensor",
        epsilon: float,
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The norm of their sum, and the sum."""

    @abstractmethod
    def lay_out_angles(self, cos: "torch.Tensor", sin: "torch.Tensor", scale: float) -> Any:
        """fp32 [tokens, head_dim / 2] of a step, in whatever form `rotate` of this device takes."""

    @abstractmethod
    def rotate(self, heads: "torch.Tensor", angles: Any) -> "torch.Tensor":
        """Turn the two halves of each head against each other, times the scale.

        heads: [tokens, heads, head_dim].
        """

    @abstractmethod
    def swiglu(self, gate_up: "torch.Tensor") -> "torch.Tensor":
        """silu(first half) * second half, of the last dimension."""

    @abstractmethod
    def to_device(self, values: "np.ndarray") -> "torch.Tensor":
        """A copy of the host's values; the current stream gets it, and nobody waits."""

    @abstractmethod
    def to_host(self, tensor: "torch.Tensor") -> HostCopy:
        """Begin to copy what the current stream has made; nobody waits."""

    @abstractmethod
    def new_stream(self) -> Stream: ...

    @abstractmethod
    def current_stream(self) -> Stream:
        """Of the calling thread."""

    @abstractmethod
    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        """Run `forward` once on the trash block, then capture it. From any thread.

        At most graph_rows_max rows; none of its tables names more than blocks_per_row blocks.
        """
