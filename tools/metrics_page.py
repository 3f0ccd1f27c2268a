"""docs/metrics.md, made from the metrics that the services define.

`python -m tools.metrics_page` writes the tables between their marks.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

# The section of the page, and the module that defines its metrics.
MODULES = {
    "process": "deepflow.process_metrics",
    "gateway": "services.gateway.metrics",
    "job_executor": "services.job_executor.metrics",
    "cluster_manager": "services.cluster_manager.metrics",
    "kv_store": "services.kv_store.metrics",
}
_SECTION = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end of metrics -->)", re.DOTALL)
_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
}


@dataclass(frozen=True)
class Described:
    family: str
    kind: str
    labels: tuple[str, ...]
    documentation: str

    @property
    def names(self) -> tuple[str, ...]:
        """What /metrics shows and a query may ask for."""
        return tuple(self.family + suffix for suffix in _SUFFIXES[self.kind])

    @property
    def shown(self) -> str:
        return self.names[0] if self.kind == "counter" else self.family


def described() -> dict[str, list[Described]]:
    """Every metric of every service, by section."""
    found = {section: list(_of_module(module)) for section, module in MODULES.items()}
    found["task_executor"] = list(_of_task_executor())
    return found


def with_tables(page: str) -> str:
    tables = described()
    return _SECTION.sub(lambda m: f"{m[1]}\n{_table(tables[m[2]])}\n{m[3]}", page)


def sections(page: str) -> list[str]:
    return [match[2] for match in _SECTION.finditer(page)]


def _of_module(name: str) -> Iterator[Described]:
    for value in vars(importlib.import_module(name)).values():
        if isinstance(value, MetricWrapperBase):
            for metric in value.describe():
                yield _describe(metric, tuple(value._labelnames))


def _of_task_executor() -> Iterator[Described]:
    from services.task_executor.shell.load import LoadMeter
    from services.task_executor.shell.metrics import ShellMetrics

    for metric in ShellMetrics(LoadMeter(), CollectorRegistry()).collect():
        yield _describe(metric, tuple(getattr(metric, "_labelnames", ())))


def _describe(metric: Metric, labels: tuple[str, ...]) -> Described:
    return Described(metric.name, metric.type, labels, metric.documentation)


def _table(metrics: list[Described]) -> str:
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for it in sorted(metrics, key=lambda it: it.family):
        labels = ", ".join(f"`{label}`" for label in it.labels)
        lines.append(f"| `{it.shown}` | {it.kind} | {labels} | {it.documentation} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
