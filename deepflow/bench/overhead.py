"""What a decode step costs beside its arithmetic: the same step of a model with next to no width.

The hollow model has the layers of the real one and runs the same plans, so the same Python runs,
the same operations are dispatched and the same threads are woken; only their arithmetic is gone.
What little of it is left, and the launch of each operation, count as overhead: an upper bound.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from deepflow.bench.random_model import Shape
from services.task_executor.flowserve.step_trace import StepSpan

HOLLOW = "hollow"
WIDTH = 16
VOCABULARY = 64


def hollow(shape: Shape) -> Shape:
    return replace(
        shape,
        hidden=WIDTH,
        intermediate=WIDTH,
        heads=1,
        kv_heads=1,
        head_dim=WIDTH,
        vocabulary=VOCABULARY,
    )


def fold(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts of as many tokens for the hollow model."""
    return [[token % VOCABULARY for token in prompt] for prompt in prompts]


def decode_step_median(spans: Sequence[StepSpan]) -> float:
    """Seconds from the end of one step to the end of the next, a decode of all rows; 0 for none.

    So planning and taking in are counted, too.
    """
    most = max((span.sequences for span in spans), default=0)
    seconds = [
        step.ran[1] - before.ran[1]
        for before, step in pairwise(spans)
        if step.tokens == step.sequences == most and not before.is_last
    ]
    return statistics.median(seconds) if seconds else 0.0
