"""What a job says of its tenant's share and its own urgency."""

import math

import pytest

from deepflow.v1 import types_pb2 as types
from services.job_executor.scheduling.ticket import rank_of, weight_of


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        (0.0, 1.0),
        (-3.0, 1.0),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (2.5, 2.5),
        (1e9, 100),
        (1e-9, 0.01),
    ],
)
def test_a_weight_is_positive_and_bounded_whoever_told_it(told: float, counts: float) -> None:
    assert weight_of(told) == counts


def test_batch_work_goes_behind_interactive_work_whatever_its_priority() -> None:
    batch = types.WorkContext(service_class=types.SERVICE_CLASS_BATCH, priority=-9)
    plain = types.WorkContext(priority=9)
    urgent = types.WorkContext(service_class=types.SERVICE_CLASS_INTERACTIVE, priority=-1)
    assert sorted([batch, plain, urgent], key=rank_of) == [urgent, plain, batch]
