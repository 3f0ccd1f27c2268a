"""What the engine told of its KV tiers against what a scrape and a heartbeat show."""

from deepflow.v1 import events_pb2
from services.task_executor.flowserve.messages import CopyCount, KvReport, Loaded, TierReport
from services.task_executor.shell.load import LoadMeter
from tests.unit.task_executor.test_metrics import scrape, step

BLOCK_BYTES = 1000
LOADED = Loaded(
    "demo", 16, 9, 4, 100, 50, kv_bytes=9 * BLOCK_BYTES, kv_dram_blocks=20, kv_disk_blocks=0
)


def report(hits: int, waits: list[float], *, good: int, failed: int) -> KvReport:
    return KvReport(
        tiers=[TierReport(3, 2, hits), TierReport(1, 10, 2 * hits), TierReport(0, 0, 0)],
        missed_tokens=hits // 2,
        fetches=hits // 16,
        computes=1,
        copies=[CopyCount(0, 1, True, good), CopyCount(1, 0, False, failed)],
        fetch_waits=waits,
    )


def told(meter: LoadMeter, *reports: KvReport) -> None:
    meter.loaded(LOADED)
    for number, it in enumerate(reports):
        meter.add(step(number + 1, 0.001, kv=it))


def test_a_scrape_shows_every_tier_and_what_it_did() -> None:
    meter = LoadMeter()
    told(
        meter,
        report(16, [0.002], good=4, failed=0),
        report(48, [0.003, 9.0], good=5, failed=2),
    )
    shown = scrape(meter)
    blocks = {
        state: shown[f'kv_tier_blocks{{state="{state}",tier="dram"}}']
        for state in ("used", "kept", "free")
    }
    assert blocks == {"used": 1, "kept": 10, "free": 9}
    assert shown['kv_tier_bytes{state="kept",tier="device"}'] == 2 * BLOCK_BYTES
    assert not [name for name in shown if "disk" in name and name.startswith("kv_tier")]
    assert shown['kv_hit_tokens_total{tier="device"}'] == 48
    assert shown['kv_hit_tokens_total{tier="dram"}'] == 96
    assert shown["kv_missed_tokens_total"] == 24
    assert shown['kv_choices_total{choice="fetch"}'] == 3
    assert shown['kv_choices_total{choice="compute"}'] == 1
    assert shown['kv_copies_total{outcome="ok",source="device",target="dram"}'] == 5
    assert shown['kv_copies_total{outcome="failed",source="dram",target="device"}'] == 2
    assert (shown["kv_fetch_seconds_count"], shown["kv_fetch_seconds_sum"]) == (3, 9.005)


def test_the_next_engine_counts_from_zero_and_nothing_is_counted_twice_or_lost() -> None:
    meter = LoadMeter()
    told(meter, report(16, [], good=4, failed=1))
    meter.engine_lost()
    assert not [name for name in scrape(meter) if name.startswith("kv_tier")]
    told(meter, report(32, [], good=3, failed=1))
    shown = scrape(meter)
    assert shown['kv_hit_tokens_total{tier="device"}'] == 48
    assert shown['kv_copies_total{outcome="ok",source="device",target="dram"}'] == 7


def test_a_heartbeat_carries_the_sizes_of_the_tiers_that_there_are() -> None:
    meter = LoadMeter()
    told(meter, report(16, [], good=4, failed=1))
    load = events_pb2.Load()
    meter.fill(load)
    rows = [(it.name, it.bytes, it.used_bytes, it.kept_bytes) for it in load.kv_tiers]
    assert rows == [("device", 8000, 3000, 2000), ("dram", 20_000, 1000, 10_000)]
    meter.engine_lost()
    load.Clear()
    meter.fill(load)
    assert not load.kv_tiers
