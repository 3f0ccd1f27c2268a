"""A dummy run, so that the first request does not pay for first calls."""

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan


def warm_up(executor: Executor, config: EngineConfig) -> None:
    """One prefill and one decode, greedy and drawn; leaves every row free.

    It writes to blocks that no index knows yet: whoever gets them writes them before reading.
    """
    length = min(config.block_size, config.max_tokens - 1, config.max_step_tokens)
    if length < 1:
        return
    executor.execute(_prefill(config, length))
    executor.execute(StepPlan(0, rows=[0], starts=[length], counts=[1], samples=[True]))
    executor.execute(StepPlan(0, released_rows=[0]))


def _prefill(config: EngineConfig, length: int) -> StepPlan:
    sampling = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9)
    blocks = list(range(1, 1 + -(-(length + 1) // config.block_size)))
    return StepPlan(
        0,
        admitted=[AdmittedSequence(0, [0] * length, length, 0, sampling)],
        new_blocks=[(0, blocks)],
        rows=[0],
        starts=[0],
        counts=[length],
        samples=[True],
    )
