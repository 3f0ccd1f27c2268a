"""Accelerators by their nominal numbers, and how long a step would take on them (roofline).

Nominal peaks are never reached, so emulated steps are a lower bound: they compare designs, they
do not predict a machine. Sources: Huawei's and NVIDIA's product pages (dense fp16/bf16, no
sparsity). The block size is what attention kernels there ask for.
"""

from dataclasses import dataclass

from deepflow.core.model_spec import DTYPE_BYTES, ModelSpec


@dataclass(frozen=True, slots=True)
class AcceleratorProfile:
    name: str
    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float  # host and launch overhead of one step
    block_size: int
    # Bytes a second between its memory and the host's, each way: PCIe 5.0 of 16 lanes.
    link_rate: float = float("inf")

    @property
    def is_instant(self) -> bool:
        return self.flops_per_second == float("inf")


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step asks of a device, as counts."""

    tokens: int
    sampled: int
    context_tokens: int  # KV entries read, summed over sequences
    attended_pairs: int  # (query, key) pairs, summed over sequences


ZERO = AcceleratorProfile("zero", float("inf"), float("inf"), 0.0, block_size=16)
PCIE = 64e9
ASCEND_910B = AcceleratorProfile("ascend-910b", 376e12, 1.6e12, 300e-6, 128, PCIE)
H200 = AcceleratorProfile("h200", 989e12, 4.8e12, 200e-6, 16, PCIE)


class Roofline:
    """Seconds of a step of one model on one accelerator."""

    def __init__(self, spec: ModelSpec, profile: AcceleratorProfile) -> None:
        self._profile = profile
        tables = 1 if spec.tied_embeddings else 2
        layer_parameters = spec.parameters - tables * spec.embedding_parameters
        self._token_flops = 2 * layer_parameters
        self._sampled_flops = 2 * spec.embedding_parameters
        self._pair_flops = 4 * spec.num_layers * spec.q_size
        # All weights once a step; of the input table only the tokens' rows, which is nothing.
        weight_count = layer_parameters + spec.embedding_parameters
        self._weight_bytes = weight_count * DTYPE_BYTES[spec.dtype]
        self._kv_bytes = spec.kv_bytes_per_token(spec.dtype)

    def step_seconds(self, work: StepWork) -> float:
        flops = (
            work.tokens * self._token_flops
            + work.sampled * self._sampled_flops
            + work.attended_pairs * self._pair_flops
        )
        moved = self._weight_bytes + (work.context_tokens + work.tokens) * self._kv_bytes
        profile = self._profile
        busy = max(flops / profile.flops_per_second, moved / profile.bytes_per_second)
        return profile.launch_seconds + busy
