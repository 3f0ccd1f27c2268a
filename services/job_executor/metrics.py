"""What a job executor counts; scraped from its health port."""

from prometheus_client import Counter, Gauge

JOBS = Counter(
    "deepflow_job_executor_jobs", "Jobs that ended, by kind and outcome.", ["kind", "outcome"]
)
TOKENS = Counter("deepflow_job_executor_tokens", "Tokens received from task executors.")
JOBS_RUNNING = Gauge("deepflow_job_executor_jobs_running", "Jobs that have not ended.")
LINKS = Gauge("deepflow_job_executor_links", "Live streams to task executors.")
TOKENIZER_QUEUE = Gauge(
    "deepflow_job_executor_tokenizer_queue", "Prompts being rendered or tokenized, or waiting."
)
LOG_BYTES = Gauge("deepflow_job_executor_log_bytes", "Memory of the token logs of ended jobs.")
