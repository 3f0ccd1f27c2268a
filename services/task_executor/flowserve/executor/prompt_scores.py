"""Log probabilities of prompt tokens, from the hidden states of the chunk before each of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from deepflow.core.mixing import I64
from services.task_executor.flowserve.executor.capacity import SCORED_POSITIONS
from services.task_executor.flowserve.executor.row_table import RowTable, StepBatch
from services.task_executor.flowserve.messages import PromptLogprobs
from services.task_executor.flowserve.sampling.ranking import log_normaliser, ranks, top

# A long vocabulary makes the logits of each position half a megabyte.
SLICE = SCORED_POSITIONS

ToLogits = Callable[[torch.Tensor], torch.Tensor]


def score_prompts(
    table: RowTable, batch: StepBatch, hidden: torch.Tensor, to_logits: ToLogits
) -> list[PromptLogprobs]:
    """One report for every entry that asked and ran a part of its prompt; `handle` is the row.

    Scores that are not finite stand in it as they are: see `is_finite`.
    """
    reports = []
    for span in _spans(table, batch):
        first, end = span.start + 1, span.start + 1 + span.count
        targets = table.token_ids[span.row, first:end].astype(np.int64)
        scores = _score(span.of(hidden), targets, span.alternatives, to_logits)
        reports.append(PromptLogprobs(span.row, first, *scores))
    return reports


def follow_scores(
    table: RowTable, batch: StepBatch, hidden: torch.Tensor, to_logits: ToLogits
) -> None:
    """On a rank that holds a part of the head: what another one scores, in the same slices."""
    for span in _spans(table, batch):
        for part in torch.split(span.of(hidden), SLICE):
            to_logits(part)


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens of a prompt in this step, each of which says something about the next."""

    row: int
    start: int  # in the sequence
    first: int  # in the step
    count: int
    alternatives: int

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[self.first : self.first + self.count]


def _spans(table: RowTable, batch: StepBatch) -> Iterator[_Span]:
    wanted = table.sampling.prompt_alternatives[batch.rows]
    if (wanted < 0).all():
        return
    firsts = batch.counts.cumsum() - batch.counts
    for entry in np.flatnonzero(wanted >= 0):
        row, start = int(batch.rows[entry]), int(batch.starts[entry])
        last = int(table.sampling.prompt_lengths[row]) - 1
        count = min(int(batch.counts[entry]), last - start)
        if count > 0:
            yield _Span(row, start, int(firsts[entry]), count, int(wanted[entry]))


def is_finite(report: PromptLogprobs) -> bool:
    """A NaN or an infinity among the logits of any of the positions shows in these."""
    return bool(np.isfinite(report.logprobs).all() and np.isfinite(report.top_logprobs).all())


def _score(
    hidden: torch.Tensor, targets: I64, alternatives: int, to_logits: ToLogits
) -> tuple[list[float], list[int], list[int], list[float]]:
    """logprobs, ranks, top token ids, top logprobs"""
    columns: tuple[list[float], list[int], list[int], list[float]] = ([], [], [], [])
    token_ids = torch.from_numpy(targets).to(hidden.device)
    for begin in range(0, len(hidden), SLICE):
        part = slice(begin, begin + SLICE)
        logits, wanted = to_logits(hidden[part]), token_ids[part]
        normaliser = log_normaliser(logits)
        own = logits.gather(-1, wanted[:, None]).squeeze(-1) - normaliser
        columns[0].extend(own.tolist())
        columns[1].extend(ranks(logits, wanted).tolist())
        if alternatives:
            ids, logprobs = top(logits, normaliser, alternatives)
            columns[2].extend(ids.flatten().tolist())
            columns[3].extend(logprobs.flatten().tolist())
    return columns
