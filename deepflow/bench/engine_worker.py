"""FlowServe behind the benchmark's worker protocol."""

from pathlib import Path

from deepflow.bench.peers.protocol import Engine, Setup, serve
from deepflow.core.sampling import SamplingParams


class OurEngine:
    def __init__(self, setup: Setup) -> None:
        from services.task_executor.flowserve.engine import FlowServe

        self._engine = FlowServe(
            setup.model,
            device=setup.device,
            dtype=setup.dtype,
            tensor_parallel=setup.tensor_parallel,
            pipeline_parallel=setup.pipeline_parallel,
        )
        self._trace = self._engine.record()

    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        return [answer.token_ids for answer in self._engine.generate(prompts, sampling)]

    def take_trace(self, path: str) -> dict[str, float]:
        sums = {
            "gap_fraction": self._trace.gap_fraction(),
            "master_fraction": self._trace.master_fraction(),
        }
        if path:
            self._trace.write(Path(path))
        self._trace.spans.clear()
        return sums


def build(setup: Setup) -> Engine:
    return OurEngine(setup)


if __name__ == "__main__":
    serve(build)
