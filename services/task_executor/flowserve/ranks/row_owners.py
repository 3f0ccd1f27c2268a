"""Since which step a row belongs to the sequence that has it: a token that comes late, from a rank
further on, must not reach the row's next owner."""

import numpy as np

from deepflow.core.mixing import I64
from services.task_executor.flowserve.plan import StepPlan

NOBODY = 1 << 62


class RowOwners:
    def __init__(self, max_sequences: int) -> None:
        self._since: I64 = np.full(max_sequences, NOBODY, dtype=np.int64)

    def update(self, plan: StepPlan) -> None:
        self._since[plan.released_rows] = NOBODY
        for sequence in plan.admitted:
            self._since[sequence.row] = plan.step

    def still_own(self, rows: I64, step: int) -> I64:
        """Which of the entries have the owner that they had in that step."""
        return np.flatnonzero(self._since[rows] <= step)
