"""A client of the cluster manager: for the supervisor and for commands, never a member."""

from deepflow.cluster_managers import ClusterManagers
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

CALL_SECONDS = 5.0
# Longer than it takes until a standby leads, where the leader has just died.
CHANGE_SECONDS = 20.0
# Longer than the cluster manager takes at most to read a model folder.
DEPLOY_SECONDS = 35.0


class ClusterClient:
    """Raises DeepFlowError: Unavailable while the cluster manager is away."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.token = token
        self._managers = ClusterManagers(address, token)

    async def view(self, timeout_seconds: float = CALL_SECONDS) -> cluster_pb2.ClusterView:
        reply = await self._managers.call(
            lambda it: it.GetView, cluster_pb2.GetViewRequest(), timeout_seconds=timeout_seconds
        )
        return reply.view

    async def deploy(self, deployment: cluster_pb2.Deployment) -> cluster_pb2.Deployment:
        reply = await self._managers.call(
            lambda it: it.Deploy,
            cluster_pb2.DeployRequest(deployment=deployment),
            timeout_seconds=DEPLOY_SECONDS,
            idempotent=True,
        )
        return reply.deployment

    async def undeploy(self, name: str) -> None:
        request = cluster_pb2.UndeployRequest(name=name)
        await self._managers.call(
            lambda it: it.Undeploy, request, timeout_seconds=CHANGE_SECONDS, idempotent=True
        )

    async def scale(self, name: str, replicas: int) -> cluster_pb2.Deployment:
        request = cluster_pb2.ScaleRequest(deployment=name, count=replicas)
        return (await self._scale(request)).deployment

    async def scale_job_executors(self, count: int) -> None:
        kind = types.MEMBER_KIND_JOB_EXECUTOR
        await self._scale(cluster_pb2.ScaleRequest(kind=kind, count=count))

    async def _scale(self, request: cluster_pb2.ScaleRequest) -> cluster_pb2.ScaleResponse:
        return await self._managers.call(
            lambda it: it.Scale, request, timeout_seconds=CHANGE_SECONDS, idempotent=True
        )

    async def close(self) -> None:
        await self._managers.close()
