"""What a job has emitted: while it runs, and for a while after its end."""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

from deepflow.v1 import jobs_pb2
from services.job_executor.jobs.details import Alternatives

# Per token: id and logprob of 4 bytes, a reference to a text that is mostly shared.
TOKEN_BYTES = 16
CHOICE_BYTES = 512


@dataclass(slots=True)
class ChoiceLog:
    """Columns of one choice; index i is token i of the answer."""

    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    texts: list[str] = field(default_factory=list)
    logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    alternatives: Alternatives | None = None  # where the client asked for logprobs
    finish: jobs_pb2.ChoiceFinished | None = None

    @property
    def num_bytes(self) -> int:
        beside = self.alternatives.num_bytes if self.alternatives is not None else 0
        return CHOICE_BYTES + len(self.token_ids) * TOKEN_BYTES + beside


@dataclass(frozen=True, slots=True)
class JobLog:
    job_id: str
    choices: tuple[ChoiceLog, ...]

    @property
    def num_bytes(self) -> int:
        return sum(choice.num_bytes for choice in self.choices)


class EndedJobs:
    """Logs of ended jobs: oldest first out, when their time is over or memory is short."""

    def __init__(self, *, ttl_seconds: float, bytes_max: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._bytes_max = bytes_max
        self._logs: OrderedDict[str, tuple[float, JobLog]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._logs)

    def keep(self, log: JobLog, now: float) -> None:
        """A later attempt of the same job replaces the earlier one."""
        self._drop(log.job_id)
        self._logs[log.job_id] = (now + self._ttl_seconds, log)
        self.num_bytes += log.num_bytes
        self.expire(now)

    def get(self, job_id: str, now: float) -> JobLog | None:
        self.expire(now)
        entry = self._logs.get(job_id)
        return entry[1] if entry else None

    def expire(self, now: float) -> None:
        while self._logs:
            job_id, (until, _) = next(iter(self._logs.items()))
            if until > now and self.num_bytes <= self._bytes_max:
                return
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        entry = self._logs.pop(job_id, None)
        if entry is not None:
            self.num_bytes -= entry[1].num_bytes
