"""What the master tells every rank to run and what a rank answers: plain data, no tensor.

A plan names token counts, never token values, except where a sequence enters the batch: each rank
keeps the tokens of its rows and appends what it samples. That is what lets the master plan step
n+1 while step n runs.
"""

from collections.abc import Container
from dataclasses import dataclass, field

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import PromptLogprobs, TopLogprobs

TRASH_BLOCK = 0  # padded slots point here; it never holds anybody's KV


@dataclass(slots=True)
class AdmittedSequence:
    """A sequence that takes a row: new, or back after a preemption with all it knows."""

    row: int
    token_ids: list[int]  # prompt, resumed and generated tokens
    prompt_length: int  # token i is the (i - prompt_length)th of the answer
    choice_index: int
    sampling: SamplingParams


@dataclass(slots=True)
class StepPlan:
    """One step. Work on the rows in this order: release, admit, append blocks, run."""

    step: int
    released_rows: list[int] = field(default_factory=list)
    admitted: list[AdmittedSequence] = field(default_factory=list)
    new_blocks: list[tuple[int, list[int]]] = field(default_factory=list)  # row, its next blocks
    # Entry i runs positions starts[i] .. starts[i] + counts[i] - 1 of rows[i].
    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)  # does the last position yield a token?

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class StepResult:
    """What the sampled rows drew, in plan order, and which rows failed instead."""

    step: int
    rows: list[int]
    token_ids: list[int]
    logprobs: list[float]
    failures: dict[int, str] = field(default_factory=dict)  # row -> why; its neighbours went on
    began: float = 0.0  # on the monotonic clock
    seconds: float = 0.0
    blamed_rows: set[int] = field(default_factory=set)  # of those, whose request was at fault
    # Rows whose grammar allows nothing after the token just drawn: the answer is complete.
    completed_rows: list[int] = field(default_factory=list)
    tops: TopLogprobs | None = None  # positions count the tokens of this result
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)  # `handle` holds the row

    def fail(self, failures: dict[int, str], *, is_their_own: bool = False) -> None:
        """These rows drew a token that does not count after all."""
        self.failures |= failures
        if is_their_own:
            self.blamed_rows |= failures.keys()
        self.drop(failures)

    def drop(self, rows: Container[int]) -> None:
        """Forget what these rows drew."""
        kept = [index for index, row in enumerate(self.rows) if row not in rows]
        if self.tops is not None:
            self.tops = self.tops.only(kept)
        self.completed_rows = [row for row in self.completed_rows if row not in rows]
        self.rows = [self.rows[index] for index in kept]
        self.token_ids = [self.token_ids[index] for index in kept]
        self.logprobs = [self.logprobs[index] for index in kept]
