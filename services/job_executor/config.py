"""Every setting of a job executor."""

from pydantic import Field, field_validator

from deepflow.config import MeshServiceConfig
from services.job_executor.scheduling.registry import DEFAULT_POLICY, make_policy
from services.job_executor.scheduling.waiting_room import RoomLimits


class JobExecutorConfig(MeshServiceConfig):
    """Limits say "no" with a clear error; nothing in a job executor grows without one."""

    policy: str = Field(DEFAULT_POLICY, description="How task executors are chosen.")
    linger_seconds: float = Field(
        1.0,
        ge=0,
        le=60,
        description="How long after SIGTERM jobs are still taken from gateways that have not"
        " learnt of it.",
    )
    jobs_max: int = Field(
        4096, ge=1, description="Jobs at a time; one more is refused with a retry hint."
    )
    waiting_tasks_max: int = Field(
        4096,
        ge=1,
        description="Tasks that may wait for room on a task executor; more are refused with 503.",
    )
    waiting_tasks_per_tenant_max: int = Field(
        2048, ge=1, description="Of these, those of one tenant; more are refused with 429."
    )
    waiting_seconds_max: float = Field(
        60.0,
        gt=0,
        description="A job of which nothing runs by then is refused with 503.",
    )
    tasks_per_job_max: int = Field(
        128, ge=1, description="Choices of one job: prompts times n; more is a bad request."
    )
    embeddings_per_job_max: int = Field(
        2048, ge=1, description="Inputs of one job of embeddings; more is a bad request."
    )
    embeddings_in_flight_max: int = Field(
        128, ge=1, description="Of these inputs, those that may be on their way at a time."
    )
    placement_attempts_max: int = Field(
        3, ge=1, description="Task executors tried for a task that has produced nothing yet."
    )
    tokenizer_threads: int = Field(
        2, ge=1, description="Threads that render templates and tokenize long texts."
    )
    tokenizer_queue_max: int = Field(
        512, ge=1, description="Prompts that may wait for those threads; one more is refused."
    )
    template_seconds_max: float = Field(
        5.0, gt=0, description="A chat template that renders longer than this is interrupted."
    )
    model_load_seconds_max: float = Field(
        30.0, gt=0, description="How long a request waits for its model's tokenizer to load."
    )
    log_ttl_seconds: float = Field(
        120.0, ge=0, description="How long the token log of an ended job is kept."
    )
    stories_max: int = Field(
        4096, ge=1, description="Requests of which /v1/requests can tell; the oldest go first."
    )
    log_bytes_max: int = Field(
        256 * 1024 * 1024, ge=0, description="Memory for token logs of ended jobs; oldest go first."
    )

    @property
    def room_limits(self) -> RoomLimits:
        return RoomLimits(
            self.waiting_tasks_max, self.waiting_tasks_per_tenant_max, self.waiting_seconds_max
        )

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, name: str) -> str:
        make_policy(name)
        return name
