"""The task executor's Prometheus metrics, read from the meter when they are scraped."""

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.task_executor.shell.load import LoadMeter


class ShellMetrics(Collector):
    """Nothing is counted twice: the meter holds the facts."""

    def __init__(self, meter: LoadMeter, registry: CollectorRegistry = REGISTRY) -> None:
        self._meter = meter
        self._registry = registry
        registry.register(self)

    def close(self) -> None:
        self._registry.unregister(self)

    def collect(self) -> Iterable[Metric]:
        meter = self._meter
        yield CounterMetricFamily(
            "deepflow_te_tokens", "Tokens the engine has generated.", value=meter.tokens
        )
        yield CounterMetricFamily(
            "deepflow_te_embeddings", "Vectors the engine has made.", value=meter.embeddings
        )
        yield CounterMetricFamily(
            "deepflow_te_steps", "Steps the engine has run.", value=meter.steps
        )
        yield GaugeMetricFamily(
            "deepflow_te_sequences_running", "Sequences in the batch.", value=meter.running
        )
        yield GaugeMetricFamily(
            "deepflow_te_sequences_waiting", "Sequences in the queue.", value=meter.waiting
        )
        yield GaugeMetricFamily(
            "deepflow_te_kv_blocks_free", "KV blocks without an owner.", value=meter.free_blocks
        )
        yield GaugeMetricFamily(
            "deepflow_te_step_seconds", "Length of the last engine step.", value=meter.step_seconds
        )
