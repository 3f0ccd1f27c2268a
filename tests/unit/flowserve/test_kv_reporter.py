"""When the cache's state is told, and that it is true."""

from services.task_executor.flowserve.kv_reporter import REPORT_SECONDS, KvReporter
from services.task_executor.flowserve.messages import CopyCount
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.prefetch import BY_COST
from tests.unit.flowserve.test_prefetch import PREFIX, answer, make_harness, put_away

NOW = 100.0


def test_hits_are_counted_by_the_tier_in_which_they_lay() -> None:
    harness = make_harness(dram=40)
    put_away(harness)
    tally = harness.cache.tally
    computed = tally.missed_tokens
    assert tally.hit_tokens == [0, 0, 0] and computed == 5 * 17
    answer(harness, [*PREFIX, 9, 9])
    answer(harness, [*PREFIX, 9, 8])
    assert tally.hit_tokens == [len(PREFIX), len(PREFIX), 0]
    assert tally.missed_tokens == computed + 2 * 2
    assert (tally.fetches, tally.computes) == (1, 0)


def test_a_block_that_could_not_be_fetched_is_a_miss_and_a_failed_copy() -> None:
    harness = make_harness(0, 40)
    put_away(harness)
    tally = harness.cache.tally
    before = tally.missed_tokens
    handle = harness.submit([*PREFIX, 9, 9], 3)
    harness.step()
    harness.mover.on_disk.clear()
    harness.drain()
    assert handle in harness.finished
    assert tally.hit_tokens == [0, 0, 0] and tally.missed_tokens == before + 18
    assert tally.copies[Tier.DISK, Tier.DEVICE, False] == 4


def test_computing_what_could_be_fetched_is_a_choice() -> None:
    harness = make_harness()
    put_away(harness)
    harness.scheduler.prefetch.choice = BY_COST
    harness.scheduler.prefetch.costs.block_seconds[Tier.DRAM] = 1e6
    answer(harness, [*PREFIX, 8])
    assert (harness.cache.tally.fetches, harness.cache.tally.computes) == (0, 1)


def test_a_report_says_how_each_tier_stands() -> None:
    harness = make_harness(dram=40)
    put_away(harness)
    running = harness.submit([2, 2, 2], 30)
    harness.step()
    report = KvReporter(harness.cache).take(NOW, is_quiet=False)
    assert report is not None and running not in harness.finished
    used = harness.config.usable_blocks - harness.cache.num_available
    assert [it.used_blocks for it in report.tiers] == [used, 0, 0]
    kept = [harness.cache.num_idle(it) for it in Tier]
    assert [it.kept_blocks for it in report.tiers] == kept and kept[Tier.DRAM] > 0
    put = harness.mover.num_done[Tier.DRAM]
    assert report.copies == [CopyCount(Tier.DEVICE, Tier.DRAM, True, put)]


def test_while_it_works_it_tells_seldom_and_when_quiet_whatever_is_new() -> None:
    harness = make_harness(dram=40)
    reporter = KvReporter(harness.cache)
    assert reporter.take(NOW, is_quiet=False) is not None
    answer(harness, [*PREFIX, 9])
    assert reporter.take(NOW + 0.9 * REPORT_SECONDS, is_quiet=False) is None
    told = reporter.take(NOW + 0.9 * REPORT_SECONDS, is_quiet=True)
    assert told is not None and told.missed_tokens == 17
    assert reporter.take(NOW + 9, is_quiet=True) is None, "nothing is new"


def test_waits_are_told_once() -> None:
    harness = make_harness(dram=40)
    put_away(harness)
    answer(harness, [*PREFIX, 9, 9])
    reporter = KvReporter(harness.cache)
    first, second = (reporter.take(now, is_quiet=True) for now in (NOW, NOW + 1))
    assert first is not None and len(first.fetch_waits) == 1 and second is None
