"""What placing the models comes to, as it is put together."""

from dataclasses import dataclass, field

from services.cluster_manager.reconcile.actions import LoadModel, UnloadModel
from services.cluster_manager.reconcile.state import MemberState, WantedDeployment


@dataclass(slots=True)
class Placement:
    actions: list[LoadModel | UnloadModel] = field(default_factory=list)
    # Device of every replica that no task executor is there for.
    missing: list[str] = field(default_factory=list)
    # Task executors that will be free soon: starting, unloading, or not confirmed yet.
    coming: list[str] = field(default_factory=list)
    # Task executors that hold nothing and are needed for nothing.
    spare: list[str] = field(default_factory=list)
    # Task executors that hold a deployment which has enough others.
    surplus: list[str] = field(default_factory=list)
    # Members that are to become empty before anything is done to them, and why.
    leaving: dict[str, str] = field(default_factory=dict)

    def load(self, wanted: WantedDeployment, free: list[MemberState]) -> bool:
        """Give the deployment one of the free task executors; False where none fits."""
        fitting = next((it for it in free if it.device in ("", wanted.device)), None)
        if fitting is None:
            return False
        free.remove(fitting)
        self.actions.append(LoadModel(fitting.id, wanted.name))
        return True
