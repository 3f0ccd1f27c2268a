"""What a job executor counts; scraped from its health port."""

from prometheus_client import Counter, Gauge, Histogram

JOBS = Counter(
    "deepflow_job_executor_jobs",
    'Jobs that ended, by kind and outcome: "ok" or the reason of the error.',
    ["kind", "outcome"],
)
TOKENS = Counter("deepflow_job_executor_tokens", "Tokens received from task executors.")
TASKS_REPLACED = Counter(
    "deepflow_job_executor_tasks_replaced", "Tasks that were given to another task executor."
)
JOBS_RUNNING = Gauge("deepflow_job_executor_jobs_running", "Jobs that have not ended.")
ADMISSION_SECONDS = Histogram(
    "deepflow_job_executor_admission_seconds",
    "From a job's arrival until it ran: template, tokenizer, queue and grammar.",
    ["model"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
TASKS_WAITING = Gauge(
    "deepflow_job_executor_tasks_waiting", "Tasks that wait for room on a task executor."
)
QUEUE_SECONDS = Histogram(
    "deepflow_job_executor_queue_seconds",
    "How long a task waited for its tenant's turn; tasks that found room at once are not counted.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60),
)
JOBS_TURNED_AWAY = Counter(
    "deepflow_job_executor_jobs_turned_away",
    "Jobs refused before anything was done for them, by the reason of the error.",
    ["reason"],
)
LINKS = Gauge("deepflow_job_executor_links", "Live streams to task executors.")
TOKENIZER_QUEUE = Gauge(
    "deepflow_job_executor_tokenizer_queue", "Prompts being rendered or tokenized, or waiting."
)
KV_BLOCKS = Gauge("deepflow_job_executor_kv_blocks", "Blocks in the global prompt tree.")
KV_INDEX_READS = Counter(
    "deepflow_job_executor_kv_index_reads",
    "Whole KV indexes read, by source and outcome.",
    ["source", "outcome"],
)
LOG_BYTES = Gauge("deepflow_job_executor_log_bytes", "Memory of the token logs of ended jobs.")
CONTEXT_USES = Counter(
    "deepflow_job_executor_context_uses",
    "Answers that began with an explicit context, by what came of its tokens: hit, recomputed, or"
    " parted where the prompt did not begin with them.",
    ["outcome"],
)
STORIES = Gauge("deepflow_job_executor_stories", "Requests of which /v1/requests can tell.")
