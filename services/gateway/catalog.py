"""What the view says to a gateway: which models exist, and who can work on them."""

from deepflow.errors import InvalidRequest, NotFound, Unavailable
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import types_pb2 as types

RETRY_AFTER_SECONDS = 1.0

_TASKS: dict[int, str] = {
    cluster.MODEL_TASK_GENERATE: "generates text; ask it at /v1/chat/completions",
    cluster.MODEL_TASK_EMBED: "makes embeddings and generates no text; ask it at /v1/embeddings",
}


class Catalog:
    """One view, indexed; made anew for every view."""

    def __init__(self, view: cluster.ClusterView) -> None:
        self.is_known = bool(view.term or view.version)
        self.deployments = {d.name: d for d in view.deployments}
        self.job_executors = {
            m.id: m for m in view.members if m.kind == types.MEMBER_KIND_JOB_EXECUTOR
        }
        self.gateways = max(
            1,
            sum(
                m.kind == types.MEMBER_KIND_GATEWAY and m.state == types.LIFECYCLE_STATE_READY
                for m in view.members
            ),
        )
        self._served = {
            m.deployment
            for m in view.members
            if m.kind == types.MEMBER_KIND_TASK_EXECUTOR and m.state == types.LIFECYCLE_STATE_READY
        }

    def deployment(self, model: str) -> cluster.Deployment:
        self.require_view()
        found = self.deployments.get(model)
        if found is None:
            raise NotFound(
                f"the model {model[:64]!r} does not exist; see /v1/models",
                param="model",
                reason="model_not_found",
            )
        return found

    def require_task(self, model: str, task: cluster.ModelTask.ValueType) -> None:
        """Whether the model does what the route is for; one that does not say does anything."""
        said = self.deployment(model).facts.task
        if said not in (task, cluster.MODEL_TASK_UNSPECIFIED):
            raise InvalidRequest(
                f"the model {model!r} {_TASKS[said]}", param="model", reason="model_not_supported"
            )

    def require_view(self) -> None:
        if not self.is_known:
            raise Unavailable(
                "this gateway has not heard from the cluster yet; try again in a moment",
                reason="cluster_unknown",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def require_served(self, model: str) -> None:
        if model not in self._served:
            raise Unavailable(
                f"no task executor is ready for the model {model!r}; try again in a moment",
                reason="model_not_ready",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
