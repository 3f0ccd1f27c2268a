"""Who waits for KV that lies elsewhere, for how long, and who does not."""

import pytest

from services.task_executor.flowserve.rtc.cache import ARRIVING_SHARE
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.copy_watch import PATIENCE_SECONDS
from services.task_executor.flowserve.scheduler.prefetch import (
    ALWAYS,
    BY_COST,
    NEVER,
    POPULATES_MAX,
)
from tests.unit.flowserve.fingerprint_executor import answer_alone
from tests.unit.flowserve.harness import Harness, make_config

PREFIX = [1, 2, 3, 4] * 4
OTHERS = ([5] * 16, [6] * 16, [7] * 16, [8] * 16)


def make_harness(dram: int = 40, disk: int = 0, depth: int = 1, **changes: int) -> Harness:
    usual = {"kv_blocks": 11, "kv_dram_blocks": dram, "kv_disk_blocks": disk}
    config = make_config(**(usual | {"max_step_tokens": 40} | changes))
    harness = Harness(config, depth, is_late=depth > 1)
    harness.scheduler.prefetch.choice = ALWAYS
    return harness


def answer(harness: Harness, prompt: list[int], max_tokens: int = 3) -> int:
    handle = harness.submit(prompt, max_tokens)
    harness.drain()
    assert harness.answers[handle] == answer_alone(prompt, max_tokens, ignore_eos=True)
    return handle


def put_away(harness: Harness) -> None:
    """PREFIX is computed, and leaves the device for others."""
    for prompt in (PREFIX, *OTHERS):
        answer(harness, [*prompt, 9])
        settle(harness)


def settle(harness: Harness) -> None:
    while harness.cache.num_copying:
        harness.mover.finish()
        harness.step()


@pytest.mark.parametrize(("dram", "disk"), [(40, 0), (0, 40), (8, 40)])
def test_what_left_the_device_is_fetched(dram: int, disk: int) -> None:
    harness = make_harness(dram, disk)
    put_away(harness)
    before = harness.mover.num_done[Tier.DEVICE]
    again = answer(harness, [*PREFIX, 9, 9])
    assert harness.started[again] == len(PREFIX)
    assert harness.mover.num_done[Tier.DEVICE] == before + 4


def test_nobody_stands_behind_a_fetch() -> None:
    harness = make_harness()
    put_away(harness)
    slow = harness.submit([*PREFIX, 9, 9], 2)
    quick = harness.submit([3], 2)
    for _ in range(4):
        harness.step()
    assert quick in harness.finished and slow not in harness.started
    harness.drain()
    assert harness.started[slow] == len(PREFIX)


def test_two_that_want_the_same_wait_for_one_copy() -> None:
    harness = make_harness()
    put_away(harness)
    before = harness.mover.num_done[Tier.DEVICE]
    both = [harness.submit([*PREFIX, last], 1) for last in (7, 8)]
    harness.step()
    harness.drain()
    assert [harness.started[it] for it in both] == [len(PREFIX)] * 2
    assert harness.mover.num_done[Tier.DEVICE] == before + 4


def test_a_cancel_while_fetching_frees_everything() -> None:
    harness = make_harness()
    put_away(harness)
    handle = harness.submit([*PREFIX, 9, 9])
    harness.step()
    assert harness.cache.num_arriving == 4
    harness.scheduler.cancel([handle])
    harness.scheduler.check()
    assert not harness.scheduler.has_work
    settle(harness)
    assert harness.cache.num_available == harness.config.usable_blocks
    harness.cache.check([])


def test_a_failed_fetch_is_computed() -> None:
    harness = make_harness(0, 40)
    put_away(harness)
    handle = harness.submit([*PREFIX, 9, 9], 3)
    harness.step()
    harness.mover.on_disk.clear()
    harness.drain()
    assert harness.mover.num_failed == 4 and harness.started[handle] == 0
    assert harness.answers[handle] == answer_alone([*PREFIX, 9, 9], 3, ignore_eos=True)


def steps_until_answered(harness: Harness, *handles: int) -> None:
    """Without a copy that ends."""
    for _ in range(100):
        if all(handle in harness.finished for handle in handles):
            return
        harness.step()
    raise AssertionError("nobody answers")


def test_a_fetch_that_never_ends_is_computed_and_tried_again_when_copies_end() -> None:
    harness = make_harness(0, 40, kv_blocks=17)
    put_away(harness)
    prompt = [*PREFIX, 9, 9]
    for suffix in ([9, 9], [9, 8]):  # the second finds that copies stand still
        handle = harness.submit([*PREFIX, *suffix], 3)
        for _ in range(3):
            harness.step()
        harness.now += PATIENCE_SECONDS
        steps_until_answered(harness, handle)
        assert harness.answers[handle] == answer_alone([*PREFIX, *suffix], 3, ignore_eos=True)
    assert harness.cache.num_arriving == 4
    settle(harness)
    for others in OTHERS:
        answer(harness, [*others, 3])
        settle(harness)
    assert harness.started[answer(harness, prompt)] == len(PREFIX)


def test_who_is_alone_with_a_fetch_knows_when_to_look_again() -> None:
    """Nobody else plans a step, and a copy that never ends wakes nobody."""
    harness = make_harness(0, 40)
    put_away(harness)
    harness.submit([*PREFIX, 9, 9], 3)
    assert harness.step() is None
    assert harness.scheduler.prefetch.watch.stalls_at == harness.now + PATIENCE_SECONDS


def test_who_decodes_takes_room_from_others_where_copies_never_end() -> None:
    """Blocks that are being put away come back by themselves; not from a disk that is stuck."""
    harness = make_harness(0, 40, kv_blocks=12)
    put_away(harness)
    handles = [harness.submit([number] * 4, 20) for number in (1, 2)]
    harness.mover.finish(0)
    for _ in range(60):
        harness.step()
        harness.now += PATIENCE_SECONDS / 8
    steps_until_answered(harness, *handles)


def test_fetches_leave_room_for_who_needs_none() -> None:
    harness = make_harness(kv_blocks=11, max_step_tokens=60)
    long = [1, 2, 3, 4] * 8
    for prompt in (long, *OTHERS, *OTHERS):
        answer(harness, [*prompt, 9])
        settle(harness)
    handle = harness.submit([*long, 9, 9], 2)
    harness.step()
    most = int(ARRIVING_SHARE * harness.config.kv_blocks)
    assert harness.cache.num_arriving == most
    harness.drain()
    assert harness.started[handle] == most * harness.config.block_size
    assert harness.answers[handle] == answer_alone([*long, 9, 9], 2, ignore_eos=True)


def test_several_fetches_together_leave_as_much_room() -> None:
    harness = make_harness(kv_blocks=13, max_step_tokens=60)
    prefixes = [[number] * 16 for number in range(1, 4)]
    for prompt in (*prefixes, *OTHERS):
        answer(harness, [*prompt, 9])
        settle(harness)
    handles = [harness.submit([*prefix, 9, 9], 1) for prefix in prefixes]
    harness.step()
    assert 0 < harness.cache.num_arriving <= int(ARRIVING_SHARE * harness.config.kv_blocks)
    harness.drain()
    for handle, prefix in zip(handles, prefixes, strict=True):
        assert harness.answers[handle] == answer_alone([*prefix, 9, 9], 1, ignore_eos=True)


def test_a_fetch_waits_for_steps_that_may_still_write_to_its_blocks() -> None:
    """A cancelled sequence's step runs after the copy could have: its token must not land there."""
    harness = make_harness(depth=2, kv_blocks=11)
    put_away(harness)
    leaving = harness.submit([2, 2], 30)
    harness.step()
    harness.scheduler.cancel([leaving])
    taken = harness.submit([*PREFIX, 9, 9], 3)
    harness.copies_beside = 99
    harness.step()
    harness.drain()
    assert harness.started[taken] == len(PREFIX)
    assert harness.answers[taken] == answer_alone([*PREFIX, 9, 9], 3, ignore_eos=True)


def test_it_may_be_quicker_to_compute() -> None:
    harness = make_harness()
    put_away(harness)
    harness.scheduler.prefetch.choice = BY_COST
    harness.scheduler.prefetch.costs.block_seconds[Tier.DRAM] = 1e6
    before = harness.mover.num_done[Tier.DEVICE]
    again = answer(harness, [*PREFIX, 8])
    assert harness.started[again] == 0 and harness.mover.num_done[Tier.DEVICE] == before
    assert harness.scheduler.prefetch.decisions == {"fetch": 0, "compute": 1}


def test_a_block_in_another_tier_is_still_held() -> None:
    harness = make_harness()
    answer(harness, [*PREFIX, 9])
    told = set(harness.preserved)
    put_away(harness)
    assert len(told) == 4 and told <= harness.preserved


def test_few_are_fetched_for_at_a_time() -> None:
    harness = make_harness(dram=200, kv_blocks=100, max_sequences=12, max_step_tokens=60)
    prompts = [[n, n + 1, n + 2, n + 3, 9, 9] for n in range(POPULATES_MAX + 3)]
    for prompt in prompts:
        answer(harness, prompt)
    for block in harness.cache.idle_unsafe():
        harness.cache.copy(block)
    harness.mover.submit(harness.scheduler.take_copies())
    settle(harness)
    harness.cache.free(harness.cache.alloc_blocks([], 4 * harness.cache.num_available) or [])
    for prompt in prompts:
        harness.submit(prompt)
    harness.step()
    assert harness.cache.num_arriving == POPULATES_MAX
    harness.drain()


def test_a_sequence_that_grows_waits_for_blocks_that_copies_hold() -> None:
    """Rather than throwing away what others have computed."""
    harness = make_harness(kv_blocks=11)
    harness.scheduler.prefetch.choice = NEVER
    answer(harness, [*PREFIX, 9])
    long = harness.submit([2] * 20, 20)
    for _ in range(40):
        harness.step()
    assert harness.cache.num_copying and long not in harness.finished
    harness.drain()
    assert harness.preemptions == 0
    assert harness.answers[long] == answer_alone([2] * 20, 20, ignore_eos=True)
