"""A client of the cluster manager: for the supervisor and for commands, never a member."""

from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub

CALL_SECONDS = 5.0
# Longer than the cluster manager takes at most to read a model folder.
DEPLOY_SECONDS = 35.0


class ClusterClient:
    """Raises DeepFlowError: Unavailable while the cluster manager is away."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._peer = Peer(address, token)
        self._stub = ClusterManagerServiceStub(self._peer.channel)

    async def view(self, timeout_seconds: float = CALL_SECONDS) -> cluster_pb2.ClusterView:
        reply = await self._peer.call(
            self._stub.GetView, cluster_pb2.GetViewRequest(), timeout_seconds=timeout_seconds
        )
        return reply.view

    async def deploy(self, deployment: cluster_pb2.Deployment) -> cluster_pb2.Deployment:
        reply = await self._peer.call(
            self._stub.Deploy,
            cluster_pb2.DeployRequest(deployment=deployment),
            timeout_seconds=DEPLOY_SECONDS,
            idempotent=True,
        )
        return reply.deployment

    async def undeploy(self, name: str) -> None:
        request = cluster_pb2.UndeployRequest(name=name)
        await self._peer.call(
            self._stub.Undeploy, request, timeout_seconds=CALL_SECONDS, idempotent=True
        )

    async def close(self) -> None:
        await self._peer.close()
