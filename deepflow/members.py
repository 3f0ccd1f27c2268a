"""Members, and the kinds that are scaled by their number, as JSON shows them; for all faces."""

from typing import Any, Literal, TypeAlias

from deepflow.lifecycle import state_word
from deepflow.membership import kind_word
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

Kind: TypeAlias = types.MemberKind.ValueType

# As people write them, on the command line and in URLs. Task executors are scaled by their model.
SCALED_KINDS: dict[str, Kind] = {
    "job-executors": types.MEMBER_KIND_JOB_EXECUTOR,
    "gateways": types.MEMBER_KIND_GATEWAY,
}
# Where ClusterSizes holds their numbers.
SIZE_FIELDS: dict[Kind, Literal["job_executors", "gateways"]] = {
    types.MEMBER_KIND_JOB_EXECUTOR: "job_executors",
    types.MEMBER_KIND_GATEWAY: "gateways",
}
COUNT_MAX = 64


def describe_member(member: cluster_pb2.Member) -> dict[str, Any]:
    return {
        "id": member.id,
        "kind": kind_word(member.kind),
        "state": state_word(member.state),
        "detail": member.detail,
        "state_since_unix_ms": member.state_since_unix_ms,
        "pid": member.pid,
        "address": member.address,
        "health_address": member.health_address,
        "deployment": member.deployment,
    }


def members_of(view: cluster_pb2.ClusterView, kind: Kind) -> list[cluster_pb2.Member]:
    return [member for member in view.members if member.kind == kind]


def describe_service(view: cluster_pb2.ClusterView, name: str) -> dict[str, Any]:
    """One of SCALED_KINDS. `count` is None where the cluster manager does not keep a number."""
    kind = SCALED_KINDS[name]
    members, field = members_of(view, kind), SIZE_FIELDS[kind]
    return {
        "name": name,
        "count": getattr(view.sizes, field) if view.sizes.HasField(field) else None,
        "ready": sum(it.state == types.LIFECYCLE_STATE_READY for it in members),
        "members": [
            {"id": it.id, "state": state_word(it.state), "detail": it.detail, "address": it.address}
            for it in members
        ],
    }


def is_settled(service: dict[str, Any]) -> bool:
    """As many as were asked for serve, and nobody else is there any more."""
    count = service["count"]
    return bool(count is not None and service["ready"] == count == len(service["members"]))
