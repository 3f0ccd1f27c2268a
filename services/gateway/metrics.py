"""What /metrics says about a gateway. Children of labelled metrics are looked up per request."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("deepflow_gateway_requests", "Requests answered.", ["route", "status"])
IN_FLIGHT = Gauge("deepflow_gateway_requests_in_flight", "Requests being answered.")
TOKENS = Counter("deepflow_gateway_tokens", "Tokens received from job executors.")
FIRST_TOKEN_SECONDS = Histogram(
    "deepflow_gateway_first_token_seconds",
    "From a request's arrival to its first token.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
LINKS_UP = Gauge("deepflow_gateway_job_executor_links_up", "Open streams to job executors.")
