"""What goes to the ranks: whole, in order, and no more than they need."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import Grammar, SamplingParams
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan
from services.task_executor.flowserve.ranks.messages import Drawn, Run, for_ranks
from services.task_executor.flowserve.ranks.row_owners import RowOwners
from services.task_executor.flowserve.ranks.wire import (
    PIECE_BYTES,
    Messages,
    decode_to_rank,
    encode,
    send,
)
from services.task_executor.flowserve.ring import Ring


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(0, 2 * PIECE_BYTES), min_size=1, max_size=3))
def test_messages_of_any_length_arrive_in_order(sizes: list[int]) -> None:
    ring = Ring.create(PIECE_BYTES + 1024)
    writer, messages = ring.writer(), Messages(ring.reader())
    sent = [bytes([index]) * (size + 1) for index, size in enumerate(sizes)]
    arrived: list[bytes] = []

    def read() -> None:
        while (message := messages.take()) is not None:
            arrived.append(message)

    for message in sent:
        send(writer, message, read)  # the ring is full now and then: its reader goes on then
    read()
    assert arrived == sent
    ring.close()


def plan_with(sampling: SamplingParams) -> StepPlan:
    admitted = AdmittedSequence(2, [5, 6], 2, 0, sampling)
    return StepPlan(7, [1], [admitted], [(2, [3])], [2], [0], [2], [True])


def test_a_plan_survives_the_way() -> None:
    plan = plan_with(SamplingParams(4, prompt_logprobs=1))
    assert decode_to_rank(encode(Run(for_ranks(plan)))) == Run(plan)


def test_what_only_rank_0_needs_stays_there() -> None:
    grammar = Grammar("regex", "a*")
    asked = SamplingParams(4, temperature=0.3, grammar=grammar, logit_bias={1: 2.0})
    plan = plan_with(asked)
    assert for_ranks(plan).admitted[0].sampling == SamplingParams(4)
    assert plan.admitted[0].sampling == asked


def test_a_plan_that_admits_nobody_is_sent_as_it_is() -> None:
    plan = StepPlan(3, rows=[1], starts=[4], counts=[1], samples=[True])
    assert for_ranks(plan) is plan


def test_a_late_token_does_not_reach_the_next_owner_of_its_row() -> None:
    owners = RowOwners(4)
    owners.update(plan_with(SamplingParams(4)))  # row 2, step 7
    late = Drawn(7, [1, 2], [2, 2], [9, 9])
    rows = np.array(late.rows)
    assert owners.still_own(rows, late.step).tolist() == [1]
    owners.update(StepPlan(8, released_rows=[2]))
    assert owners.still_own(rows, late.step).tolist() == []
    again = AdmittedSequence(2, [1], 1, 0, SamplingParams(1))
    owners.update(StepPlan(9, admitted=[again]))
    assert owners.still_own(rows, late.step).tolist() == []
    assert owners.still_own(rows, 9).tolist() == [1]
