"""The cluster as the rules see it: plain values, all times in seconds of one monotonic clock."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from deepflow.v1 import types_pb2 as types

Kind: TypeAlias = types.MemberKind.ValueType
State: TypeAlias = types.LifecycleState.ValueType

LOADABLE = frozenset({types.LIFECYCLE_STATE_BLANK, types.LIFECYCLE_STATE_FAILED})
LEAVING = frozenset({types.LIFECYCLE_STATE_DRAINING, types.LIFECYCLE_STATE_STOPPED})


@dataclass(frozen=True, slots=True)
class WantedDeployment:
    name: str
    device: str
    replicas: int
    # Names what is to be loaded; a task executor that loaded anything else is outdated.
    content: str


@dataclass(frozen=True, slots=True)
class MemberState:
    id: str
    kind: Kind
    incarnation: int
    state: State
    heard_at: float
    deployment: str = ""
    # Empty where the member has not said.
    device: str = ""
    # Names what it loaded, by its own word; empty where it holds nothing or does not say.
    content: str = ""
    pid: int = 0
    started_unix_ms: int = 0
    # Waiting and running work; None where no heartbeat has said: not known is not zero.
    in_flight: int | None = None
    # False for a member that is only remembered from a stored view.
    is_confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Pod:
    """A process that the driver runs; its name is the id of its member."""

    name: str
    kind: Kind
    pid: int
    is_running: bool
    since_unix_ms: int
    # When this cluster manager first saw it.
    seen_at: float
    is_stopping: bool = False


class Phase(enum.Enum):
    LOADING = "a load is under way"
    LOADED = "the task executor said that it holds the model"
    FAILED = "the last load failed; there will be another"
    UNLOADING = "an unload is under way"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one task executor was told to hold. One at a time, by construction."""

    deployment: str
    content: str
    phase: Phase
    changed_at: float
    failures: int = 0
    retry_at: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hearing:
    """The present run of heartbeats, of anybody; broken by any pause of half a timeout."""

    since: float
    last: float


@dataclass(frozen=True, slots=True)
class ClusterState:
    deployments: Mapping[str, WantedDeployment] = field(default_factory=dict)
    # How many of a kind there should be; a kind that is absent is kept by somebody else.
    sizes: Mapping[Kind, int] = field(default_factory=dict)
    members: Mapping[str, MemberState] = field(default_factory=dict)
    # None where the driver cannot tell: then no pod is started or stopped.
    pods: Mapping[str, Pod] | None = None
    # Pods that the driver once had, and since when (unix ms) it has them no more.
    gone_pods: Mapping[str, int] = field(default_factory=dict)
    assignments: Mapping[str, Assignment] = field(default_factory=dict)
    hearing: Hearing | None = None
    member_timeout: float = 5.0
    # Members that the view shows as draining, and since when: nobody sends them new work.
    draining: Mapping[str, float] = field(default_factory=dict)
    # For everybody to have learnt it, and for one more heartbeat to say what is left.
    drain_settle: float = 1.5
    # After this a member that is to go, goes, whatever runs on it.
    drain_grace: float = 60.0

    def is_stopping(self, name: str) -> bool:
        pod = self.pods.get(name) if self.pods else None
        return pod is not None and pod.is_stopping

    def is_hearing(self, now: float) -> bool:
        return self.hearing is not None and now - self.hearing.last <= self.member_timeout / 2
