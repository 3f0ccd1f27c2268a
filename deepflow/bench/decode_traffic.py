"""The least that a decode step reads from its device's memory: every weight once, its rows' KV.

Of the input table a step reads one row a token, which is nothing; activations and the KV that it
writes are not counted either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepflow.core.devices import INT8
from deepflow.core.families.windows import LayerWindows
from deepflow.core.model_spec import DTYPE_BYTES, ModelSpec
from services.task_executor.flowserve.executor.weight_size import weight_bytes
from services.task_executor.flowserve.step_trace import StepSpan


@dataclass(frozen=True, slots=True)
class DecodeTraffic:
    weight_bytes: int
    token_bytes: int  # K and V of one token in one layer
    windows: LayerWindows

    @classmethod
    def of(cls, spec: ModelSpec, dtype: str, float_dtype: str) -> "DecodeTraffic":
        """`float_dtype`: of activations and KV where the weights are int8."""
        computed = float_dtype if dtype == INT8 else dtype
        table = spec.embedding_parameters * DTYPE_BYTES[computed]
        return cls(
            weight_bytes(spec, dtype, float_dtype) - table,
            2 * spec.kv_size * DTYPE_BYTES[computed],
            spec.layer_windows,
        )

    def step_bytes(self, contexts: Sequence[int]) -> int:
        """Of a step whose rows have contexts of so many tokens."""
        tokens = sum(_seen(contexts, window) for window in self.windows)
        return self.weight_bytes + self.token_bytes * tokens


def _seen(contexts: Sequence[int], window: int | None) -> int:
    if window is None:
        return sum(contexts)
    return sum(min(context, window) for context in contexts)


def decode_sums(spans: Sequence[StepSpan], traffic: DecodeTraffic) -> dict[str, float]:
    """Of the steps in which every row ran one token: how many, their bytes and their seconds.

    A step takes from the end of the one before to its own end: what a row waits for its token.
    """
    decodes = list(_decodes(spans))
    return {
        "decode_steps": len(decodes),
        "decode_bytes": sum(traffic.step_bytes(step.contexts) for step, _ in decodes),
        "decode_seconds": sum(seconds for _, seconds in decodes),
    }


def _decodes(spans: Sequence[StepSpan]) -> Iterator[tuple[StepSpan, float]]:
    for before, step in pairwise(spans):
        if step.tokens == step.sequences and not before.is_last:
            yield step, step.ran[1] - before.ran[1]
