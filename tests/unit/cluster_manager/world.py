"""A small world that obeys the rules' actions: pods start, task executors load, processes die."""

from dataclasses import dataclass, field, replace

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import (
    Action,
    Drain,
    LoadModel,
    MarkDead,
    Resume,
    StartPod,
    StopPod,
    UnloadModel,
)
from services.cluster_manager.reconcile.rules import reconcile
from services.cluster_manager.reconcile.state import (
    Assignment,
    ClusterState,
    Hearing,
    MemberState,
    Phase,
    Pod,
    WantedDeployment,
)

TE = types.MEMBER_KIND_TASK_EXECUTOR
JE = types.MEMBER_KIND_JOB_EXECUTOR
GW = types.MEMBER_KIND_GATEWAY
STARTING = types.LIFECYCLE_STATE_STARTING
BLANK = types.LIFECYCLE_STATE_BLANK
LOADING = types.LIFECYCLE_STATE_LOADING
READY = types.LIFECYCLE_STATE_READY
TIMEOUT = 5.0
RETRY_SECONDS = 1.0


def wanted(name: str, replicas: int = 1, content: str = "a") -> WantedDeployment:
    return WantedDeployment(name, "cpu", replicas, content)


def task_executor(id: str, state: types.LifecycleState.ValueType = BLANK) -> MemberState:
    return MemberState(id, TE, 1, state, heard_at=0.0, in_flight=0, pid=1, started_unix_ms=1)


@dataclass
class World:
    state: ClusterState
    now: float = 0.0
    loads_to_fail: int = 0
    # Whoever serves always has work; only who drains runs out of it.
    is_under_load: bool = False
    history: list[Action] = field(default_factory=list)

    def run(self, steps: int = 60, *, nats_is_up: bool = True) -> list[Action]:
        """Answers the actions of the last step: none where the world has come to rest."""
        actions: list[Action] = []
        for _ in range(steps):
            self.now += 1.0
            if nats_is_up:
                self._hear()
            actions = reconcile(self.state, self.now)
            self._check_drained(actions)
            self._live()
            for action in actions:
                self._obey(action)
            self.history += actions
        return actions

    def count(self, kind: type[Action]) -> int:
        return sum(isinstance(action, kind) for action in self.history)

    def ready(self, deployment: str) -> list[str]:
        return [
            member.id
            for member in self.state.members.values()
            if member.deployment == deployment and member.state == READY
        ]

    def _hear(self) -> None:
        since = self.state.hearing.since if self.state.hearing else self.now
        members = {
            id: replace(member, heard_at=self.now, in_flight=self._work_of(member))
            for id, member in self.state.members.items()
        }
        # The kv_store and others are heard too, though no rule needs them here.
        self.state = replace(self.state, members=members, hearing=Hearing(since, self.now))

    def _work_of(self, member: MemberState) -> int:
        is_serving = member.state == READY and member.id not in self.state.draining
        return 1 if self.is_under_load and is_serving else 0

    def _check_drained(self, actions: list[Action]) -> None:
        """Nothing is taken from under running work."""
        for action in actions:
            if isinstance(action, StopPod):
                member = self.state.members.get(action.name)
            elif isinstance(action, UnloadModel):
                member = self.state.members[action.task_executor]
            else:
                continue
            if member is not None and member.state == READY:
                assert member.in_flight == 0, action
                assert self.now - self.state.draining[member.id] >= self.state.drain_settle

    def _live(self) -> None:
        """One second passes for every process."""
        for name, pod in (self.state.pods or {}).items():
            if pod.is_running and not pod.is_stopping and name not in self.state.members:
                self._put(MemberState(name, pod.kind, 1, STARTING, self.now, in_flight=0))
        for member in list(self.state.members.values()):
            if member.state == STARTING and not member.deployment:
                self._put(replace(member, state=BLANK if member.kind == TE else READY))
        for id, it in list(self.state.assignments.items()):
            self._advance(id, it)

    def _advance(self, id: str, it: Assignment) -> None:
        member = self.state.members[id]
        if it.phase is Phase.UNLOADING:
            self._put(replace(member, state=BLANK, deployment="", content=""))
            self._assign(id, None)
        elif it.phase is Phase.LOADING and self.loads_to_fail:
            self.loads_to_fail -= 1
            self._put(replace(member, state=BLANK, deployment=""))
            failed = replace(it, phase=Phase.FAILED, retry_at=self.now + RETRY_SECONDS)
            self._assign(id, failed)
        elif it.phase is Phase.LOADING:
            loaded = replace(member, state=READY, deployment=it.deployment, content=it.content)
            self._put(loaded)
            self._assign(id, replace(it, phase=Phase.LOADED, changed_at=self.now))

    def _obey(self, action: Action) -> None:
        pods = dict(self.state.pods or {})
        match action:
            case StartPod(kind, name):
                assert name not in pods, f"{name} runs already"
                pods[name] = Pod(name, kind, 1, True, 0, self.now)
                self.state = replace(self.state, pods=pods)
            case StopPod(name):
                del pods[name]
                self.state = replace(self.state, pods=pods)
                self._remove(name)
            case LoadModel(id, deployment):
                self._load(id, deployment)
            case UnloadModel(id, deployment):
                self._assign(id, Assignment(deployment, "", Phase.UNLOADING, self.now))
            case MarkDead(id):
                self._remove(id)
            case Drain(id):
                assert id not in self.state.draining, f"{id} drains already"
                draining = {**self.state.draining, id: self.now}
                self.state = replace(self.state, draining=draining)
            case Resume(id):
                draining = {name: at for name, at in self.state.draining.items() if name != id}
                self.state = replace(self.state, draining=draining)

    def _load(self, id: str, deployment: str) -> None:
        member = self.state.members[id]
        assert member.deployment == "", f"{id} holds {member.deployment} already"
        before = self.state.assignments.get(id)
        if before is not None and before.deployment in self.state.deployments:
            assert before.deployment == deployment and before.phase is not Phase.LOADING
        self._put(replace(member, state=LOADING, deployment=deployment))
        content = self.state.deployments[deployment].content
        self._assign(id, Assignment(deployment, content, Phase.LOADING, self.now))

    def _put(self, member: MemberState) -> None:
        self.state = replace(self.state, members={**self.state.members, member.id: member})

    def _assign(self, id: str, assignment: Assignment | None) -> None:
        assignments = dict(self.state.assignments)
        assignments.pop(id, None)
        if assignment is not None:
            assignments[id] = assignment
        self.state = replace(self.state, assignments=assignments)

    def _remove(self, id: str) -> None:
        members = {name: it for name, it in self.state.members.items() if name != id}
        self.state = replace(self.state, members=members)
        self._assign(id, None)
