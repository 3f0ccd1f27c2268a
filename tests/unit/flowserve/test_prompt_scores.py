"""Scores of prompt tokens under every way to cut the prompt; hidden states are logits here."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.executor import prompt_scores
from services.task_executor.flowserve.executor.matching import NoMatchers
from services.task_executor.flowserve.executor.prompt_scores import is_finite, score_prompts
from services.task_executor.flowserve.executor.row_table import RowTable
from services.task_executor.flowserve.messages import PromptLogprobs
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan
from tests.unit.flowserve.sampling_rows import random_logits

VOCAB = 40
PROMPTS = [list(range(3, 20)), [7], [9, 9, 4, 1, 30, 2]]
ANSWERS: list[list[int]] = [[], [5], [5, 6]]  # the last two were put aside, and are back
WANTED = [3, 0, None]


def make_table() -> RowTable:
    table = RowTable(3, max_tokens=32, block_size=32)
    admitted, blocks = [], []
    for row, (prompt, answer, wanted) in enumerate(zip(PROMPTS, ANSWERS, WANTED, strict=True)):
        sampling = SamplingParams(9, prompt_logprobs=wanted)
        admitted.append(AdmittedSequence(row, prompt + answer, len(prompt), 0, sampling))
        blocks.append((row, [row + 1]))
    table.update(StepPlan(1, admitted=admitted, new_blocks=blocks), NoMatchers())
    return table


def score(table: RowTable, cut: dict[int, tuple[int, int]]) -> list[PromptLogprobs]:
    """`cut` says which positions of each row run; the logits after one depend on both."""
    plan = StepPlan(1, rows=list(cut), samples=[False] * len(cut))
    plan.starts = [start for start, _ in cut.values()]
    plan.counts = [end - start for start, end in cut.values()]
    batch = table.lay_out(plan)
    hidden = torch.cat([logits_of(row)[start:end] for row, (start, end) in cut.items()])
    return score_prompts(table, batch, hidden, lambda part: part)


def logits_of(row: int) -> torch.Tensor:
    return random_logits(32, VOCAB, seed=row, has_ties=row == 0)


def expected(row: int, position: int) -> tuple[float, int, list[int]]:
    logprobs = logits_of(row)[position - 1].double().log_softmax(-1)
    own = logprobs[PROMPTS[row][position]]
    order = logprobs.sort(descending=True, stable=True).indices
    return float(own), 1 + int((logprobs > own).sum()), order[: WANTED[row]].tolist()


@given(cuts=st.lists(st.integers(1, 16), max_size=6), slice_size=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_each_position_has_one_score_however_the_prompt_is_cut(
    cuts: list[int], slice_size: int
) -> None:
    table = make_table()
    edges = sorted({0, *cuts, len(PROMPTS[0])})
    reports = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_scores, "SLICE", slice_size)
        for start, end in itertools.pairwise(edges):
            reports += score(table, {2: (0, 6), 0: (start, end)})
    assert all(report.handle == 0 and is_finite(report) for report in reports)
    position = 1
    for report in reports:
        assert report.first_position == position
        for index, logprob in enumerate(report.logprobs):
            own, rank, alternatives = expected(0, position)
            assert logprob == pytest.approx(own, abs=1e-5)
            assert report.ranks[index] == rank
            assert report.top_token_ids[3 * index : 3 * index + 3] == alternatives
            assert len(report.top_logprobs) == 3 * len(report.logprobs)
            position += 1
    assert position == len(PROMPTS[0])


def test_nothing_is_before_the_first_token_and_answers_are_not_scored() -> None:
    assert score(make_table(), {1: (0, 1)}) == []  # a prompt of one token
    assert score(make_table(), {1: (1, 2)}) == []  # its answer, run again
    assert score(make_table(), {2: (0, 8)}) == []  # did not ask


def test_scores_that_are_not_finite_are_told() -> None:
    table = make_table()
    batch = table.lay_out(StepPlan(1, rows=[0], starts=[0], counts=[5], samples=[False]))
    for bad in (np.nan, np.inf):
        hidden = logits_of(0)[:5].clone()
        hidden[2, 11] = bad
        (report,) = score_prompts(table, batch, hidden, lambda part: part)
        assert not is_finite(report)
