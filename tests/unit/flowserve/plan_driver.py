"""Drives an executor with hand-made plans: the caller says how each step is cut."""

from dataclasses import dataclass, field

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan, StepResult

GREEDY = SamplingParams(max_tokens=1000, temperature=0.0)


@dataclass(slots=True)
class Driven:
    """What the master would know about one row."""

    token_ids: list[int]
    prompt_length: int
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        return self.token_ids[self.prompt_length :]


class PlanDriver:
    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.rows: dict[int, Driven] = {}
        self._next = StepPlan(0)

    def admit(
        self,
        row: int,
        prompt: list[int],
        blocks: list[int],
        *,
        answered: list[int] | None = None,
        cached: int = 0,
        sampling: SamplingParams = GREEDY,
        choice_index: int = 0,
    ) -> Driven:
        token_ids = prompt + (answered or [])
        self._next.admitted.append(
            AdmittedSequence(row, list(token_ids), len(prompt), choice_index, sampling)
        )
        self._next.new_blocks.append((row, blocks))
        self.rows[row] = Driven(token_ids, len(prompt), cached)
        return self.rows[row]

    def release(self, row: int) -> None:
        self._next.released_rows.append(row)
        del self.rows[row]

    def append_blocks(self, row: int, blocks: list[int]) -> None:
        self._next.new_blocks.append((row, blocks))

    def step(self, counts: dict[int, int]) -> StepResult:
        """Run so many tokens of each row; a row that reaches its last known token draws one."""
        plan = self._next
        self._next = StepPlan(plan.step + 1)
        for row, count in counts.items():
            driven = self.rows[row]
            plan.rows.append(row)
            plan.starts.append(driven.computed)
            plan.counts.append(count)
            driven.computed += count
            plan.samples.append(driven.computed == len(driven.token_ids))
        result = self.executor.execute(plan)
        self._take(result)
        return result

    def prefill(self, row: int, chunk: int = 1 << 30) -> None:
        """Run what is known of the row in chunks, up to its next token."""
        driven = self.rows[row]
        known = len(driven.token_ids)
        while driven.computed < known:
            self.step({row: min(chunk, known - driven.computed)})

    def decode(self, rows: list[int], steps: int) -> None:
        for _ in range(steps):
            self.step(dict.fromkeys(rows, 1))

    def _take(self, result: StepResult) -> None:
        columns = zip(result.rows, result.token_ids, result.logprobs, strict=True)
        for row, token_id, logprob in columns:
            self.rows[row].token_ids.append(token_id)
            self.rows[row].logprobs.append(logprob)
