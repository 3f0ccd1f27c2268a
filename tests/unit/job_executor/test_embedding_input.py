"""Long requests for embeddings are cut into pieces of work; vectors are cut to what was asked."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.v1 import jobs_pb2
from services.job_executor.jobs.embedding_input import _size, _slices
from services.job_executor.jobs.vector import shorten

SLICE = 10
sizes = st.lists(st.sampled_from([0, 1, 3, 9, 10, 35]), max_size=20)


@given(sizes, st.booleans())
def test_slices_keep_the_order_and_end_where_they_are_full(lengths: list[int], ids: bool) -> None:
    prompts = [
        (
            jobs_pb2.Prompt(tokens=jobs_pb2.TokenIds(ids=[1] * length))
            if ids
            else jobs_pb2.Prompt(text="x" * length),
            f"input[{index}]",
        )
        for index, length in enumerate(lengths)
    ]
    slices = _slices(prompts, SLICE)
    assert [item for part in slices for item in part] == prompts
    for number, part in enumerate(slices):
        held = [_size(prompt) for prompt, _ in part]
        assert held and sum(held[:-1]) < SLICE
        assert number == len(slices) - 1 or sum(held) >= SLICE


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.data())
def test_a_shortened_vector_points_the_same_way_at_length_one(
    values: list[float], data: st.DataObject
) -> None:
    dimensions = data.draw(st.integers(1, len(values)))
    short = array("f", shorten(array("f", values).tobytes(), dimensions)).tolist()
    kept = values[:dimensions]
    length = math.hypot(*kept)
    assert len(short) == dimensions
    if not length:
        assert short == kept
    else:
        assert short == pytest.approx([value / length for value in kept], abs=1e-6)
