"""A copy is done when all ranks have done it, good when all are, and as slow as the slowest."""

from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.flowserve.ranks.copy_tally import COPIES_TOLD_MAX, CopyTally
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier


def copy_of(number: int) -> BlockCopy:
    return BlockCopy(number, Tier.DRAM, 1, Tier.DEVICE, 2, b"i" * 16, b"tokens")


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
def test_every_rank_has_its_word(data: st.DataObject, ranks: int, count: int) -> None:
    tally = CopyTally(ranks)
    tally.add([copy_of(number) for number in range(count)])
    assert [it.number for it in tally.take_due()] == list(range(count))
    answer = st.builds(CopyDone, st.just(0), st.booleans(), st.floats(0, 9))
    said = {it: [data.draw(answer) for _ in range(ranks)] for it in range(count)}
    left = {number: list(answers) for number, answers in said.items()}
    while left:
        number = data.draw(st.sampled_from(sorted(left)))
        one = left[number].pop()
        done = tally.take_answer(CopyDone(number, one.is_good, one.seconds))
        assert (done is None) == bool(left[number])
        if done is not None:
            answers = said[number]
            slowest = max(it.seconds for it in answers)
            assert done == CopyDone(number, all(it.is_good for it in answers), slowest)
            del left[number]


def test_no_more_are_told_than_fit_a_ring() -> None:
    tally = CopyTally(2)
    numbers = list(range(3 * COPIES_TOLD_MAX // 2))
    tally.add([copy_of(number) for number in numbers])
    first = tally.take_due()
    assert [it.number for it in first] == numbers[:COPIES_TOLD_MAX]
    assert tally.take_due() == []
    assert tally.take_answer(CopyDone(7, True, 0.0)) is None
    assert tally.take_due() == []
    assert tally.take_answer(CopyDone(7, True, 0.0)) == CopyDone(7, True, 0.0)
    assert [it.number for it in tally.take_due()] == [COPIES_TOLD_MAX]
