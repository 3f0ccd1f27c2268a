"""The least time that a piece of work can take: its matrix products at this machine's best rate.

Run as `python -m deepflow.bench.roofline`, it measures that rate and prints GFLOP/s.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from deepflow.core.model_spec import ModelSpec

SIDE = 2048
REPEATS = 12


@dataclass(frozen=True, slots=True)
class GemmWork:
    """Multiply-adds of the linear layers. Attention, norms and sampling are not in it."""

    layers: int  # a token that runs
    head: int  # a token that is drawn

    @classmethod
    def of_folder(cls, folder: Path) -> "GemmWork":
        spec = ModelSpec.from_folder(folder)
        attention = spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size)
        mlp = 3 * spec.hidden_size * spec.intermediate_size
        return cls(spec.num_layers * (attention + mlp), spec.embedding_parameters)

    def gflop(self, requests: int, prompt: int, output: int) -> float:
        # The last token is drawn and never runs.
        run = requests * (prompt + output - 1)
        return 2e-9 * (run * self.layers + requests * output * self.head)


def measure_gflops() -> float:
    """The best of several large fp32 products."""
    import torch  # late: it takes seconds

    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - began)
    return 2e-9 * SIDE**3 / best


if __name__ == "__main__":
    print(measure_gflops())
