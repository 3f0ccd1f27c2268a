"""A tier that takes nothing is tried less and less often, but never given up."""

from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.swap_pauses import FIRST, MOST, SwapPauses


def turns_until_tried(pauses: SwapPauses) -> int:
    turns = 0
    while not pauses.take_turn(Tier.DISK):
        turns += 1
    return turns


def test_pauses_grow_to_a_limit_and_one_success_ends_them() -> None:
    pauses = SwapPauses()
    lengths = []
    for _ in range(20):
        for _ in range(3):  # those that were under way together
            pauses.ended(Tier.DISK, is_good=False)
        lengths.append(turns_until_tried(pauses))
    assert lengths[:3] == [FIRST, 2 * FIRST, 4 * FIRST] and max(lengths) == lengths[-1] == MOST
    pauses.ended(Tier.DISK, is_good=True)
    assert turns_until_tried(pauses) == 0
    pauses.ended(Tier.DISK, is_good=False)
    assert turns_until_tried(pauses) == FIRST


def test_a_tier_that_takes_blocks_is_not_held_up_by_another() -> None:
    pauses = SwapPauses()
    pauses.ended(Tier.DISK, is_good=False)
    assert pauses.take_turn(Tier.DRAM) and not pauses.take_turn(Tier.DISK)
