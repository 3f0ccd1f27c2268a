"""What became of one request: written down as it happens, told to whoever asks later."""

from collections import OrderedDict
from dataclasses import dataclass, field

from deepflow import clock
from deepflow.errors import DeepFlowError, to_proto
from deepflow.v1 import jobs_pb2, tasks_pb2

RUNNING = "running"


@dataclass(slots=True)
class ChoiceStory:
    """The choice's own log knows its tokens; this knows when and where."""

    task_executor_id: str = ""
    placements: int = 0
    waited_seconds: float | None = None  # for its tenant's turn, where it had to
    beginning: tasks_pb2.TaskStarted | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    finish: jobs_pb2.ChoiceFinished | None = None

    def placed(self, task_executor_id: str) -> None:
        self.task_executor_id = task_executor_id
        self.placements += 1
        self.beginning = None

    @property
    def cached_tokens(self) -> int:
        return self.beginning.cached_tokens if self.beginning is not None else 0

    def passed_on_first(self) -> None:
        self.first_token_at = clock.monotonic()

    def ended(self, finish: jobs_pb2.ChoiceFinished) -> None:
        """Said again where an end is replaced by another."""
        self.finished_at = clock.monotonic()
        # Without its text: a story shows how an answer went, not what it says.
        self.finish = jobs_pb2.ChoiceFinished(reason=finish.reason, usage=finish.usage)
        if finish.HasField("error"):
            self.finish.error.CopyFrom(finish.error)


@dataclass(slots=True)
class RequestStory:
    """Moments are monotonic seconds; only the first of all is told as a date."""

    job: jobs_pb2.Job
    kind: str
    gateway_id: str
    received_at: float
    received_unix_ms: int
    inputs: int
    choices: list[ChoiceStory] = field(default_factory=list)
    prompt_tokens: int = 0
    admitted_at: float | None = None
    ended_at: float | None = None
    outcome: str = RUNNING
    error: DeepFlowError | None = None

    @property
    def name(self) -> tuple[str, str]:
        return self.job.context.tenant, self.job.context.request_id

    def admitted(self) -> None:
        self.admitted_at = clock.monotonic()

    def failed(self, error: DeepFlowError) -> None:
        self.error = error

    def ended(self, outcome: str) -> None:
        self.ended_at, self.outcome = clock.monotonic(), outcome

    def to_proto(self, job_executor_id: str) -> jobs_pb2.RequestStory:
        job = self.job
        return jobs_pb2.RequestStory(
            request_id=job.context.request_id,
            job_id=job.id,
            model=job.model,
            kind=self.kind,
            gateway_id=self.gateway_id,
            job_executor_id=job_executor_id,
            received_unix_ms=self.received_unix_ms,
            admitted_milliseconds=self._since(self.admitted_at),
            total_milliseconds=self._since(self.ended_at),
            outcome=self.outcome,
            error=to_proto(self.error) if self.error is not None else None,
            choices=[self._choice(i, choice) for i, choice in enumerate(self.choices)],
            inputs=self.inputs,
            prompt_tokens=self.prompt_tokens,
        )

    def _choice(self, index: int, choice: ChoiceStory) -> jobs_pb2.ChoiceStory:
        told = jobs_pb2.ChoiceStory(
            index=index,
            task_executor_id=choice.task_executor_id,
            placements=choice.placements,
            first_token_milliseconds=self._since(choice.first_token_at),
            finished_milliseconds=self._since(choice.finished_at),
            cached_tokens=choice.cached_tokens,
        )
        if choice.waited_seconds is not None:
            told.waited_milliseconds = choice.waited_seconds * 1000
        if choice.beginning is not None:
            told.queued_milliseconds = choice.beginning.queued_milliseconds
            told.prefill_milliseconds = choice.beginning.prefill_milliseconds
        if choice.finish is not None:
            usage = choice.finish.usage
            told.prompt_tokens = usage.prompt_tokens
            told.completion_tokens = usage.completion_tokens
            told.cached_tokens = max(told.cached_tokens, usage.cached_tokens)
            told.finish_reason = choice.finish.reason
            if choice.finish.HasField("error"):
                told.error.CopyFrom(choice.finish.error)
        return told

    def _since(self, moment: float | None) -> float | None:
        return None if moment is None else (moment - self.received_at) * 1000


class Stories:
    """Those that run, and those that ended not too long ago: bounded in number and time.

    A request id is the client's to choose: told is the newest request of that id and tenant.
    """

    def __init__(self, *, stories_max: int, ttl_seconds: float) -> None:
        self._stories_max = stories_max
        self._ttl_seconds = ttl_seconds
        self._stories: OrderedDict[tuple[str, str], RequestStory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stories)

    def begin(self, job: jobs_pb2.Job, kind: str, gateway_id: str) -> RequestStory:
        now = clock.monotonic()
        inputs = len(job.embedding.prompts)
        story = RequestStory(_names_of(job), kind, gateway_id, now, clock.unix_ms(), inputs)
        self._stories.pop(story.name, None)
        self._stories[story.name] = story
        while len(self._stories) > self._stories_max:
            self._stories.popitem(last=False)
        return story

    def find(self, tenant: str, request_id: str, now: float) -> RequestStory | None:
        story = self._stories.get((tenant, request_id))
        return story if story is not None and not self._is_over(story, now) else None

    def expire(self, now: float) -> None:
        """Called now and then; oldest first, and one that still runs holds up no other."""
        for name in [name for name, it in self._stories.items() if self._is_over(it, now)]:
            del self._stories[name]

    def _is_over(self, story: RequestStory, now: float) -> bool:
        return story.ended_at is not None and story.ended_at + self._ttl_seconds <= now


def _names_of(job: jobs_pb2.Job) -> jobs_pb2.Job:
    """Names alone: a story keeps no prompt alive, and shows none."""
    kept = jobs_pb2.Job(id=job.id, model=job.model)
    kept.context.request_id, kept.context.tenant = job.context.request_id, job.context.tenant
    return kept
