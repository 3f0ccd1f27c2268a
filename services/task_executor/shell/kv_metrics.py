"""The Prometheus metrics of the KV tiers, read from their meter when they are scraped."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.task_executor.shell.kv_meter import KvMeter

_Labels = TypeVar("_Labels", bound=tuple[str, ...])


def kv_metrics(prefix: str, meter: KvMeter) -> Iterable[Metric]:
    yield from _tiers(prefix, meter)
    yield _counted(
        prefix + "kv_hit_tokens",
        "Tokens of new sequences whose KV was there, by the tier in which it lay.",
        ("tier",),
        {(tier,): tokens for tier, tokens in meter.hit_tokens.items()},
    )
    yield CounterMetricFamily(
        prefix + "kv_missed_tokens",
        "Tokens of new sequences that had to be computed.",
        value=meter.missed_tokens,
    )
    yield _counted(
        prefix + "kv_copies",
        "Blocks copied from tier to tier; one from disk that failed was damaged, short or gone.",
        ("source", "target", "outcome"),
        meter.copies,
    )
    yield _counted(
        prefix + "kv_choices",
        "Prefixes in a farther tier, by what was thought quicker: to fetch or to compute.",
        ("choice",),
        {(choice,): number for choice, number in meter.choices.items()},
    )
    yield meter.fetch_times.family(
        prefix + "kv_fetch_seconds", "How long a sequence waited for KV that was fetched for it."
    )


def _tiers(prefix: str, meter: KvMeter) -> Iterable[Metric]:
    labels = ["tier", "state"]
    what = "of a KV tier: used (somebody holds it), kept (can be found again) or free."
    blocks = GaugeMetricFamily(prefix + "kv_tier_blocks", f"Blocks {what}", labels=labels)
    size = GaugeMetricFamily(prefix + "kv_tier_bytes", f"Bytes {what}", labels=labels)
    for tier in meter.tiers:
        for state, count in tier.by_state.items():
            blocks.add_metric([tier.name, state], count)
            size.add_metric([tier.name, state], count * tier.block_bytes)
    yield blocks
    yield size


def _counted(
    name: str, documentation: str, labels: tuple[str, ...], values: Mapping[_Labels, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for key, number in sorted(values.items()):
        family.add_metric(key, number)
    return family
