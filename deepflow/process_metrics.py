"""What every process counts, whichever service it is; /metrics of each shows it."""

import platform

from prometheus_client import Counter, Gauge

from deepflow import __version__

BUILD = Gauge(
    "deepflow_process_build_info", "Always 1: who this is.", ["service", "version", "python"]
)
READY = Gauge("deepflow_process_ready", "1 while the process takes work, as /ready says.")
NATS_CONNECTED = Gauge("deepflow_process_nats_connected", "1 while NATS is connected.")
NATS_LOSSES = Counter("deepflow_process_nats_losses", "Times that the connection to NATS was lost.")
EVENTS_DROPPED = Counter(
    "deepflow_process_events_dropped", "Events that were not sent because NATS was away."
)


def introduce(service: str) -> None:
    BUILD.labels(service, __version__, platform.python_version()).set(1)
