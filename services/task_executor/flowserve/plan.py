"""What the master tells every rank to run and what a rank answers: plain data, no tensor.

A plan names token counts, never token values, except where a sequence enters the batch: each rank
keeps the tokens of its rows and appends what it samples. That is what lets the master plan step
n+1 while step n runs.
"""

from dataclasses import dataclass, field

from deepflow.core.sampling import SamplingParams

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
    seconds: float = 0.0
