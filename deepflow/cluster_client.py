"""A client of the cluster manager: for whoever asks or changes it and is no member."""

from deepflow.cluster_managers import ClusterManagers
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

CALL_SECONDS = 5.0
# Longer than a lease, so that a standby leads by then.
SETTLE_SECONDS = 10.0
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

    async def settled_view(
        self, timeout_seconds: float = SETTLE_SECONDS
    ) -> cluster_pb2.ClusterView:
        """Also while one cluster manager takes over from another."""
        reply = await self._managers.call(
            lambda it: it.GetView,
            cluster_pb2.GetViewRequest(),
            timeout_seconds=timeout_seconds,
            idempotent=True,
        )
        return reply.view

    async def deploy(
        self, deployment: cluster_pb2.Deployment, expected_revision: int | None = None
    ) -> cluster_pb2.Deployment:
        """Raises Conflict where somebody changed it since the expected revision (0 = made it)."""
        reply = await self._managers.call(
            lambda it: it.Deploy,
            cluster_pb2.DeployRequest(deployment=deployment, expected_revision=expected_revision),
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

    async def scale_kind(self, kind: types.MemberKind.ValueType, count: int) -> None:
        await self._scale(cluster_pb2.ScaleRequest(kind=kind, count=count))

    async def _scale(self, request: cluster_pb2.ScaleRequest) -> cluster_pb2.ScaleResponse:
        return await self._managers.call(
            lambda it: it.Scale, request, timeout_seconds=CHANGE_SECONDS, idempotent=True
        )

    async def close(self) -> None:
        await self._managers.close()
