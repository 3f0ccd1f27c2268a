"""What the rules can ask for. Every action is idempotent."""

from dataclasses import dataclass
from typing import TypeAlias

from services.cluster_manager.reconcile.state import Kind


@dataclass(frozen=True, slots=True)
class StartPod:
    kind: Kind
    name: str
    # For a task executor: the device it will be asked to use; empty = its own choice.
    device: str = ""


@dataclass(frozen=True, slots=True)
class StopPod:
    name: str


@dataclass(frozen=True, slots=True)
class LoadModel:
    task_executor: str
    deployment: str


@dataclass(frozen=True, slots=True)
class UnloadModel:
    task_executor: str
    deployment: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Nobody sends it new work from now on."""

    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """It is not to go after all, or it has gone."""

    member: str


@dataclass(frozen=True, slots=True)
class MarkDead:
    member: str
    incarnation: int
    reason: str
    # A process that is known to have ended never speaks again; one that fell silent may.
    is_certain: bool


Action: TypeAlias = StartPod | StopPod | LoadModel | UnloadModel | Drain | Resume | MarkDead
