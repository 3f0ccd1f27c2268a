"""What every job of this process shares."""

from dataclasses import dataclass

from deepflow.telemetry import Tracing
from services.job_executor.jobs.token_log import EndedJobs
from services.job_executor.links.links import Links
from services.job_executor.scheduling.policy import Policy
from services.job_executor.tokenizer.library import ModelLibrary
from services.job_executor.tokenizer.pool import WorkPool


@dataclass(frozen=True, slots=True)
class Parts:
    id: str
    links: Links
    library: ModelLibrary
    pool: WorkPool
    policy: Policy
    ended: EndedJobs
    tracing: Tracing
    tasks_per_job_max: int
    placement_attempts_max: int
