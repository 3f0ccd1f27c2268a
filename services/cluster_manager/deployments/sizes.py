"""How many processes of a kind are kept that belong to no deployment: pure."""

from deepflow.errors import InvalidRequest
from deepflow.members import SIZE_FIELDS
from deepflow.v1 import cluster_pb2
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.reconcile.state import Kind


def words_of(kind: Kind) -> str:
    """Raises InvalidRequest for a kind that is not scaled by its number."""
    if kind not in SIZE_FIELDS:
        raise InvalidRequest(
            "target must be the name of a deployment, or a kind: job executors or gateways",
            param="target",
        )
    return SIZE_FIELDS[kind].replace("_", " ")


def wanted_sizes(
    asked: cluster_pb2.ClusterSizes, config: ClusterManagerConfig
) -> cluster_pb2.ClusterSizes:
    """Those that somebody asked for, and the settings for the others."""
    wanted = cluster_pb2.ClusterSizes(
        job_executors=config.job_executors, gateways=config.gateways or None
    )
    wanted.MergeFrom(asked)
    return wanted


def by_kind(sizes: cluster_pb2.ClusterSizes) -> dict[Kind, int]:
    """Only of the kinds that are kept: whoever runs the others knows how many."""
    return {
        kind: getattr(sizes, field) for kind, field in SIZE_FIELDS.items() if sizes.HasField(field)
    }


def with_size(sizes: cluster_pb2.ClusterSizes, kind: Kind, count: int) -> cluster_pb2.ClusterSizes:
    changed = cluster_pb2.ClusterSizes()
    changed.CopyFrom(sizes)
    setattr(changed, SIZE_FIELDS[kind], count)
    return changed
