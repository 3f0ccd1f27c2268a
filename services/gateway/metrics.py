"""What /metrics says about a gateway. Children of labelled metrics are looked up per request.

Only a model that is deployed becomes a label: a request for another one is refused before.
"""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("deepflow_gateway_requests", "Requests answered.", ["route", "status"])
ERRORS = Counter(
    "deepflow_gateway_errors",
    "Requests that ended with an error, by its code: also those whose stream had begun.",
    ["reason"],
)
IN_FLIGHT = Gauge("deepflow_gateway_requests_in_flight", "Requests being answered.")
TOKENS = Counter("deepflow_gateway_tokens", "Tokens received from job executors.")
PROMPT_TOKENS = Counter(
    "deepflow_gateway_prompt_tokens", "Tokens of prompts, as the answers report them.", ["model"]
)
CACHED_PROMPT_TOKENS = Counter(
    "deepflow_gateway_cached_prompt_tokens",
    "Of the prompts' tokens, those that a prefix cache held.",
    ["model"],
)
COMPLETION_TOKENS = Counter(
    "deepflow_gateway_completion_tokens", "Tokens of answers, as they report them.", ["model"]
)
FIRST_TOKEN_SECONDS = Histogram(
    "deepflow_gateway_first_token_seconds",
    "From a request's arrival to its first token (TTFT).",
    ["model"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
OUTPUT_TOKEN_SECONDS = Histogram(
    "deepflow_gateway_output_token_seconds",
    "Mean time from token to token of one answer, after its first (TPOT).",
    ["model"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2),
)
ANSWER_SECONDS = Histogram(
    "deepflow_gateway_answer_seconds",
    "From a request's arrival to the end of its answer, however that ended.",
    ["model"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
)
LINKS_UP = Gauge("deepflow_gateway_job_executor_links_up", "Open streams to job executors.")
REFUSED_BY_LIMIT = Counter(
    "deepflow_gateway_refused_by_limit", "Requests that a limit of their tenant refused."
)
USAGE_LOST = Counter(
    "deepflow_gateway_usage_rows_lost", "Rows of usage that the store would not take."
)


def count_tokens(model: str, prompt: int, cached: int, completion: int) -> None:
    PROMPT_TOKENS.labels(model).inc(prompt)
    CACHED_PROMPT_TOKENS.labels(model).inc(cached)
    COMPLETION_TOKENS.labels(model).inc(completion)


def time_answer(
    model: str, *, arrived: float, first_token: float, ended: float, tokens: float
) -> None:
    """Moments in seconds, 0 for a first token that never came; `tokens` are those of one choice."""
    ANSWER_SECONDS.labels(model).observe(ended - arrived)
    if not first_token:
        return
    FIRST_TOKEN_SECONDS.labels(model).observe(first_token - arrived)
    if tokens > 1:
        OUTPUT_TOKEN_SECONDS.labels(model).observe((ended - first_token) / (tokens - 1))
