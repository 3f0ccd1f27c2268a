"""What the kv_store counts."""

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("deepflow_kv_store_calls", "Calls by method and outcome.", ["method", "outcome"])
CALL_SECONDS = Histogram(
    "deepflow_kv_store_call_seconds",
    "Time of one call, Redis included.",
    ["method"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
)
AVAILABLE = Gauge(
    "deepflow_kv_store_redis_available", "1 while Redis answers and the marker is there."
)
EVICTIONS = Counter(
    "deepflow_kv_store_disposable_evictions", "Disposable values that made room for others."
)
