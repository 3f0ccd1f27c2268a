"""The desired deployments: records in the store, a copy here. The leader is their only writer."""

from deepflow import clock
from deepflow.deployments import content_of
from deepflow.errors import Conflict, NotFound
from deepflow.v1 import cluster_pb2
from services.cluster_manager.masters.leadership import LEASE_NAME
from services.cluster_manager.reconcile.state import WantedDeployment
from services.cluster_manager.store import Store

PREFIX = "deployments/"
SIZES_RECORD = "cluster/sizes"


class Catalog:
    """A change counts once its record is written; before that nothing here moves."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._deployments: dict[str, cluster_pb2.Deployment] = {}
        self.sizes = cluster_pb2.ClusterSizes()

    async def read(self) -> None:
        values = await self._store.list(PREFIX)
        found = [cluster_pb2.Deployment.FromString(value) for value in values]
        sizes = cluster_pb2.ClusterSizes.FromString(await self._store.get(SIZES_RECORD) or b"")
        self._deployments = {deployment.name: deployment for deployment in found}
        self.sizes = sizes

    def clear(self) -> None:
        self._deployments = {}
        self.sizes = cluster_pb2.ClusterSizes()

    def all(self) -> list[cluster_pb2.Deployment]:
        return list(self._deployments.values())

    def get(self, name: str) -> cluster_pb2.Deployment | None:
        return self._deployments.get(name)

    def require(self, name: str) -> cluster_pb2.Deployment:
        if name not in self._deployments:
            known = ", ".join(sorted(self._deployments)) or "none"
            raise NotFound(
                f"no deployment {name!r}; there are: {known}",
                param="name",
                reason="deployment_not_found",
            )
        return self._deployments[name]

    def require_revision(self, name: str, expected: int) -> None:
        """Raises Conflict where somebody else changed it since; 0 = it is not there."""
        present = self._deployments.get(name)
        if (present.revision if present else 0) != expected:
            raise Conflict(f"somebody else changed {name} meanwhile; look at it and try again")

    async def put_sizes(self, sizes: cluster_pb2.ClusterSizes, token: int) -> None:
        value = sizes.SerializeToString(deterministic=True)
        await self._store.put(SIZES_RECORD, value, LEASE_NAME, token)
        self.sizes = sizes

    async def put(self, asked: cluster_pb2.Deployment, token: int) -> cluster_pb2.Deployment:
        """The deployment as it stands; a request that changes nothing writes nothing."""
        deployment = _next_revision(self._deployments.get(asked.name), asked)
        if deployment == self._deployments.get(asked.name):
            return deployment
        value = deployment.SerializeToString(deterministic=True)
        await self._store.put(PREFIX + asked.name, value, LEASE_NAME, token)
        self._deployments[asked.name] = deployment
        return deployment

    async def delete(self, name: str, token: int) -> None:
        self.require(name)
        await self._store.delete(PREFIX + name, LEASE_NAME, token)
        del self._deployments[name]

    def wanted(self) -> dict[str, WantedDeployment]:
        return {
            name: WantedDeployment(name, it.device, it.replicas, content_of(it))
            for name, it in self._deployments.items()
        }


def _next_revision(
    before: cluster_pb2.Deployment | None, asked: cluster_pb2.Deployment
) -> cluster_pb2.Deployment:
    deployment = cluster_pb2.Deployment()
    deployment.CopyFrom(asked)
    deployment.revision = before.revision if before else 1
    deployment.created_unix_ms = before.created_unix_ms if before else clock.unix_ms()
    if before is not None and deployment != before:
        deployment.revision += 1
    return deployment
