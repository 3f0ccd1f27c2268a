"""What each deployment asks for and what became of it, told from the view: pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deepflow.core.sizes import format_bytes
from deepflow.lifecycle import state_word
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

READY, LOADING, FAILED, WAITING = "ready", "loading", "failed", "waiting"
_GIVEN_UP = (types.LIFECYCLE_STATE_BLANK, types.LIFECYCLE_STATE_FAILED)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one deployment is."""

    state: str
    ready: int
    detail: str  # where it is not ready: the load step, or why loading failed
    failed_member: str = ""


def content_of(deployment: cluster_pb2.Deployment) -> str:
    """Names all that a task executor would have to load anew for; replicas do not."""
    it, engine = deployment, deployment.engine.SerializeToString(deterministic=True).hex()
    parts = (it.facts.model_revision, it.device, it.source, it.dtype, it.max_tokens, it.kv_bytes)
    return " ".join(str(part) for part in (*parts, engine))


def progress_of(
    deployment: cluster_pb2.Deployment, members: Iterable[cluster_pb2.Member]
) -> Progress:
    """A failure of one replica counts as long as not all are ready."""
    holders = [member for member in members if _holds(member, deployment.name)]
    ready = [member for member in holders if is_serving(member)]
    if len(ready) >= deployment.replicas:
        return Progress(READY, len(ready), "")
    for member in holders:
        if member.state in _GIVEN_UP and member.detail and not member.is_outdated:
            return Progress(FAILED, len(ready), member.detail, member.id)
    under_way = [member for member in holders if member not in ready]
    words = ", ".join(_words(member) for member in under_way)
    return Progress(LOADING if under_way else WAITING, len(ready), words)


def is_serving(member: cluster_pb2.Member) -> bool:
    return member.state == types.LIFECYCLE_STATE_READY and not member.is_outdated


def describe_deployments(view: cluster_pb2.ClusterView) -> list[dict[str, Any]]:
    """For people and scripts: what was asked for, and what came of it."""
    return [describe_deployment(it, list(view.members)) for it in view.deployments]


def cut_words(row: dict[str, Any]) -> str:
    """Why a context is shorter than the model's; empty where it is not, or was asked to be."""
    held, whole = row["max_tokens"], row["context_length"]
    if row["is_context_asked"] or not 0 < held < whole:
        return ""
    return (
        f"its context is {held} of {whole} tokens, as many as its KV cache of"
        f" {format_bytes(row['kv_bytes'])} holds; more with --kv-memory"
    )


def find(view: cluster_pb2.ClusterView, name: str) -> cluster_pb2.Deployment | None:
    return next((it for it in view.deployments if it.name == name), None)


def describe_deployment(
    deployment: cluster_pb2.Deployment, members: list[cluster_pb2.Member]
) -> dict[str, Any]:
    facts, progress = deployment.facts, progress_of(deployment, members)
    return {
        "name": deployment.name,
        "source": deployment.source,
        "device": deployment.device,
        "replicas": deployment.replicas,
        "revision": deployment.revision,
        "state": progress.state,
        "ready": progress.ready,
        "detail": progress.detail,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "context_length": facts.context_length,
        "is_context_asked": bool(deployment.max_tokens),
        "task": "embed" if facts.task == cluster_pb2.MODEL_TASK_EMBED else "generate",
        "tool_format": deployment.tool_format,
        "tensor_parallel": max(1, deployment.engine.tensor_parallel),
        "pipeline_parallel": max(1, deployment.engine.pipeline_parallel),
        **_memory(deployment, members),
        "task_executors": [_describe_holder(it) for it in members if _holds(it, deployment.name)],
    }


def _describe_holder(member: cluster_pb2.Member) -> dict[str, Any]:
    return {
        "id": member.id,
        "state": state_word(member.state),
        "detail": member.detail,
        "is_outdated": member.is_outdated,
    }


def _memory(
    deployment: cluster_pb2.Deployment, members: list[cluster_pb2.Member]
) -> dict[str, Any]:
    """Of one replica; what was asked for stands in until one is ready. Zero is not known."""
    held = [m.capabilities for m in members if _holds(m, deployment.name) and is_serving(m)]
    asked = deployment.engine
    # Replicas on unequal machines: what every one of them can take.
    return {
        "dtype": held[0].dtype if held else deployment.dtype,
        "max_tokens": min((it.max_tokens for it in held), default=deployment.max_tokens),
        "weight_bytes": max((it.weight_bytes for it in held), default=0),
        "kv_bytes": min((it.kv_bytes for it in held), default=deployment.kv_bytes),
        # Of the tiers behind the device; 0 where there are none.
        "kv_dram_bytes": min((it.kv_dram_bytes for it in held), default=asked.kv_dram_bytes),
        "kv_disk_bytes": min((it.kv_disk_bytes for it in held), default=asked.kv_disk_bytes),
    }


def _holds(member: cluster_pb2.Member, name: str) -> bool:
    return member.kind == types.MEMBER_KIND_TASK_EXECUTOR and member.deployment == name


def _words(member: cluster_pb2.Member) -> str:
    state = "to be replaced" if member.is_outdated else state_word(member.state)
    return f"{member.id} {state} {member.detail}".strip()
