"""Who runs when, over random comings and goings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.embedding.config import EmbeddingConfig
from services.task_executor.flowserve.embedding.queue import EmbeddingQueue
from services.task_executor.flowserve.messages import Submit

CONFIG = EmbeddingConfig(
    vocab_size=50,
    embedding_size=8,
    max_tokens=12,
    max_sequences=4,
    max_step_tokens=20,
    max_waiting=9,
)
NOTHING = SamplingParams(max_tokens=0)


def submit(handle: int, length: int = 3, *, priority: int = 0, embed: bool = True) -> Submit:
    return Submit(handle, [7] * length, NOTHING, priority=priority, embed=embed)


arrivals = st.tuples(st.just("submit"), st.integers(1, 12), st.integers(-1, 1))
cancels = st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0))
batches = st.tuples(st.just("batch"), st.just(0), st.just(0))


@given(st.lists(st.one_of(arrivals, arrivals, cancels, batches), max_size=60))
def test_every_text_runs_once_in_its_turn(events: list[tuple[str, int, int]]) -> None:
    queue = EmbeddingQueue(CONFIG)
    waiting: dict[int, tuple[int, int, int]] = {}  # handle -> priority, arrival, length
    for number, (kind, size, priority) in enumerate(events):
        if kind == "submit":
            refusal = queue.submit(submit(number, size, priority=priority))
            assert (refusal is not None) == (len(waiting) == CONFIG.max_waiting)
            if refusal is None:
                waiting[number] = (priority, number, size)
            else:
                assert not refusal.invalid
        elif kind == "cancel":
            left = [it.handle for it in queue.cancel([size, size])]
            assert left == ([size] if size in waiting else [])
            waiting.pop(size, None)
        else:
            batch = [it.handle for it in queue.take_batch()]
            expected = sorted(waiting, key=lambda handle: waiting[handle][:2])
            assert batch == expected[: len(batch)]
            lengths = [waiting[handle][2] for handle in expected]
            _check_size(lengths, len(batch))
            for handle in batch:
                del waiting[handle]
        assert len(queue) == len(waiting)
    assert {it.handle for it in queue.cancel_all()} == waiting.keys()
    assert not queue


def _check_size(lengths: list[int], taken: int) -> None:
    """As many as fit, and nobody behind the first that does not."""
    assert taken <= CONFIG.max_sequences
    assert taken <= 1 or sum(lengths[:taken]) <= CONFIG.max_step_tokens
    if taken < min(len(lengths), CONFIG.max_sequences):
        assert taken >= 1
        assert sum(lengths[: taken + 1]) > CONFIG.max_step_tokens


def test_a_text_longer_than_a_step_runs_alone() -> None:
    queue = EmbeddingQueue(
        EmbeddingConfig(vocab_size=50, embedding_size=8, max_tokens=12, max_step_tokens=5)
    )
    for handle, length in enumerate((12, 2, 2)):
        assert queue.submit(submit(handle, length)) is None
    assert [it.handle for it in queue.take_batch()] == [0]
    assert [it.handle for it in queue.take_batch()] == [1, 2]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (submit(1, 13), "13 tokens, but may have 12"),
        (submit(1, 0), "empty"),
        (Submit(1, [3, 50], NOTHING, embed=True), "token id 50 is not in the vocabulary of 50"),
        (Submit(1, [3, -1], NOTHING, embed=True), "token id -1"),
        (submit(1, embed=False), "generates no text"),
        (Submit(1, [3], NOTHING, embed=True, context_id="manual"), "keeps no contexts"),
    ],
)
def test_what_cannot_be_run_is_refused(message: Submit, says: str) -> None:
    queue = EmbeddingQueue(CONFIG)
    refusal = queue.submit(message)
    assert refusal is not None and refusal.invalid
    assert says in refusal.message
    assert not queue


def test_a_handle_in_use_is_a_mistake_of_the_shell() -> None:
    queue = EmbeddingQueue(CONFIG)
    queue.submit(submit(1))
    with pytest.raises(ValueError, match="handle 1"):
        queue.submit(submit(1))
