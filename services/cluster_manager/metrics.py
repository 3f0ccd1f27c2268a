"""What the cluster manager counts."""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from deepflow.lifecycle import state_word
from deepflow.membership import kind_word
from deepflow.v1 import cluster_pb2

MEMBERS = Gauge("deepflow_cluster_manager_members", "Members by kind and state.", ["kind", "state"])
ACTIONS = Counter(
    "deepflow_cluster_manager_reconcile_actions", "Actions that reconciling asked for.", ["action"]
)
VIEW_VERSION = Gauge(
    "deepflow_cluster_manager_view_version", "Version of the view within its term."
)
IS_LEADER = Gauge("deepflow_cluster_manager_is_leader", "1 while this process leads.")
LOAD_FAILURES = Counter(
    "deepflow_cluster_manager_model_load_failures", "Loads that a task executor refused."
)
LOAD_SECONDS = Gauge(
    "deepflow_cluster_manager_model_load_seconds",
    "Time of the last successful load.",
    ["deployment"],
)


def count_members(members: Iterable[cluster_pb2.Member]) -> None:
    MEMBERS.clear()
    tally = Tally((kind_word(it.kind), state_word(it.state)) for it in members)
    for (kind, state), number in tally.items():
        MEMBERS.labels(kind, state).set(number)
