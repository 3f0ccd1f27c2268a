"""FlowServe behind the benchmark's worker protocol."""

from pathlib import Path

from deepflow.bench.decode_traffic import DecodeTraffic, decode_sums
from deepflow.bench.overhead import decode_step_median
from deepflow.bench.peers.protocol import Engine, Setup, serve
from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.model_spec import ModelSpec
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
        dtypes = DEVICE_DTYPES[setup.device]
        spec = ModelSpec.from_folder(setup.model)
        self._traffic = DecodeTraffic.of(spec, setup.dtype or dtypes[0], dtypes[0])
        self._trace = self._engine.record()

    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        return [answer.token_ids for answer in self._engine.generate(prompts, sampling)]

    def take_trace(self, path: str) -> dict[str, float]:
        sums = {
            "gap_fraction": self._trace.gap_fraction(),
            "master_fraction": self._trace.master_fraction(),
            "decode_step_median": decode_step_median(self._trace.spans),
            **decode_sums(self._trace.spans, self._traffic),
        }
        if path:
            self._trace.write(Path(path))
        self._trace.spans.clear()
        return sums


def build(setup: Setup) -> Engine:
    return OurEngine(setup)


if __name__ == "__main__":
    serve(build)
