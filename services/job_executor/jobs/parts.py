"""What every job of this process shares."""

from dataclasses import dataclass

from deepflow.errors import Unavailable
from deepflow.telemetry import Tracing
from services.job_executor.contexts.recall import Contexts
from services.job_executor.jobs.story import Stories
from services.job_executor.jobs.token_log import EndedJobs
from services.job_executor.links.links import Links
from services.job_executor.prompt_tree.matcher import PromptMatcher
from services.job_executor.scheduling.policy import Policy
from services.job_executor.scheduling.waiting_room import WaitingRoom
from services.job_executor.tokenizer.library import ModelLibrary, ServedModel
from services.job_executor.tokenizer.pool import WorkPool


@dataclass(frozen=True, slots=True)
class Parts:
    id: str
    links: Links
    library: ModelLibrary
    pool: WorkPool
    policy: Policy
    matcher: PromptMatcher
    room: WaitingRoom
    ended: EndedJobs
    stories: Stories
    contexts: Contexts
    tracing: Tracing
    tasks_per_job_max: int
    placement_attempts_max: int
    embeddings_per_job_max: int
    embeddings_in_flight_max: int

    def tokens_max(self, model: ServedModel) -> int:
        """Prompt and answer of one sequence together. Raises Unavailable where nobody knows."""
        known = (model.deployment.facts.context_length, self.links.tokens_max(model.name))
        limits = [limit for limit in known if limit]
        if not limits:
            raise Unavailable(f"the context length of {model.name} is unknown")
        return min(limits)
