"""The task executor's Prometheus metrics, read from the meter when they are scraped."""

from collections.abc import Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.task_executor.shell.kv_metrics import kv_metrics
from services.task_executor.shell.load import LoadMeter

PREFIX = "deepflow_task_executor_"


class ShellMetrics(Collector):
    """Nothing is counted twice: the meter holds the facts."""

    def __init__(self, meter: LoadMeter, registry: CollectorRegistry = REGISTRY) -> None:
        self._meter = meter
        self._registry = registry
        registry.register(self)

    def close(self) -> None:
        self._registry.unregister(self)

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._times()
        yield from kv_metrics(PREFIX, self._meter.kv)

    def _counters(self) -> Iterable[Metric]:
        meter = self._meter
        for name, value, documentation in (
            ("tokens", meter.tokens, "Tokens the engine has generated."),
            ("embeddings", meter.embeddings, "Vectors the engine has made."),
            ("steps", meter.steps, "Steps the engine has run."),
            ("preemptions", meter.preemptions, "Sequences sent back to the queue for room."),
            ("prompt_tokens", meter.prompt_tokens, "Tokens of the prompts of ended tasks."),
            (
                "cached_prompt_tokens",
                meter.cached_prompt_tokens,
                "Of those, the ones that the prefix cache held.",
            ),
            ("engine_restarts", meter.engines_lost, "Engines that were lost and replaced."),
        ):
            yield CounterMetricFamily(PREFIX + name, documentation, value=value)
        yield _by_label(
            "tasks_ended",
            "Tasks that ended: stop, length, cancelled, error (the engine's), invalid"
            " (the request's) or busy.",
            "reason",
            meter.ended,
        )
        yield _by_label(
            "grammars",
            "Grammars that were compiled or refused; one that is known is not compiled again.",
            "outcome",
            meter.grammars,
        )

    def _gauges(self) -> Iterable[Metric]:
        meter = self._meter
        for name, value, documentation in (
            ("sequences_running", meter.running, "Sequences in the batch."),
            ("sequences_waiting", meter.waiting, "Sequences in the queue."),
            ("kv_blocks", meter.total_blocks, "KV blocks of the model, used or free."),
            ("kv_blocks_free", meter.free_blocks, "KV blocks without an owner."),
        ):
            yield GaugeMetricFamily(PREFIX + name, documentation, value=value)
        held = GaugeMetricFamily(
            PREFIX + "deployment_held",
            "1 for the deployment that is loaded.",
            labels=["deployment"],
        )
        if meter.deployment:
            held.add_metric([meter.deployment], 1)
        yield held

    def _times(self) -> Iterable[Metric]:
        meter = self._meter
        yield meter.step_times.family(PREFIX + "step_seconds", "Length of the engine's steps.")
        yield meter.queue_times.family(
            PREFIX + "queue_seconds", "From a task's submission until a step took it up."
        )
        yield meter.prefill_times.family(
            PREFIX + "prefill_seconds", "From there to its first token."
        )
        yield meter.grammar_times.family(
            PREFIX + "grammar_compile_seconds", "Time to prove and compile one grammar."
        )


def _by_label(
    name: str, documentation: str, label: str, values: Mapping[str, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=[label])
    for value, number in sorted(values.items()):
        family.add_metric([value], number)
    return family
