"""A step that was planned and not yet answered, and whose sequences it runs."""

from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.scheduler.sequence import Sequence


class Flight:
    """Rows may change hands before the answer comes, so it remembers whose they were."""

    __slots__ = ("num_decoding", "owners", "plan", "stale_rows")

    def __init__(self, plan: StepPlan, sequences: list[Sequence], num_decoding: int) -> None:
        self.plan = plan
        self.num_decoding = num_decoding  # they come first, with a token each
        self.owners = dict(zip(plan.rows, sequences, strict=True))
        self.stale_rows: set[int] = set()  # of sequences that have ended meanwhile
        self._change(1)

    def land(self) -> None:
        """What it brings is known now, or will never be."""
        self._change(-1)

    def _change(self, by: int) -> None:
        sequences = list(self.owners.values())
        for sequence in sequences[: self.num_decoding]:
            sequence.flights += by
            sequence.pending += by
        rest = slice(self.num_decoding, None)
        for sequence, is_sampled in zip(sequences[rest], self.plan.samples[rest], strict=True):
            sequence.flights += by
            sequence.pending += by * is_sampled

    def forget(self, sequence: Sequence) -> None:
        """What it brings for this one is nobody's any more."""
        self.stale_rows.update(row for row, owner in self.owners.items() if owner is sequence)

    def drop_stale(self, result: StepResult) -> None:
        stale = self.stale_rows
        if not stale:
            return
        result.failures = {row: why for row, why in result.failures.items() if row not in stale}
        result.prompt_logprobs = [it for it in result.prompt_logprobs if it.handle not in stale]
        result.drop(stale)
