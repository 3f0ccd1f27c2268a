"""Job executors' prompt trees, held against the task executors' own indexes."""

from typing import Any

import grpc

from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import KvIndexServiceStub, PromptTreeServiceStub
from services.job_executor.prompt_tree.service import digest
from tests.chaos.mesh import Mesh

CALL_SECONDS_MAX = 30.0

# By task executor: how many blocks, and what they combine to.
Blocks = dict[str, tuple[int, bytes]]


def indexes(mesh: Mesh) -> Blocks:
    """What each task executor says that it holds."""
    return {name: _index(mesh, name) for name in mesh.names("task_executor")}


def trees(mesh: Mesh) -> dict[str, Blocks]:
    """By job executor: what it believes."""
    return {name: _tree(mesh, name) for name in mesh.names("job_executor")}


def agree(mesh: Mesh) -> bool:
    truth = indexes(mesh)
    return all(tree == truth for tree in trees(mesh).values())


def _index(mesh: Mesh, name: str) -> tuple[int, bytes]:
    with grpc.insecure_channel(mesh.address(name)) as channel:
        chunks = KvIndexServiceStub(channel).ReadKvIndex(
            cache_pb2.ReadKvIndexRequest(), **_manners(mesh)
        )
        held = {it for chunk in chunks for run in chunk.runs for it in run.identities}
    return len(held), digest(held)


def _tree(mesh: Mesh, name: str) -> Blocks:
    with grpc.insecure_channel(mesh.address(name)) as channel:
        reply = PromptTreeServiceStub(channel).DescribePromptTree(
            cache_pb2.DescribePromptTreeRequest(), **_manners(mesh)
        )
    return {it.task_executor_id: (it.blocks, it.digest) for it in reply.branches}


def _manners(mesh: Mesh) -> dict[str, Any]:
    metadata = (("authorization", f"Bearer {mesh.token}"),)
    return {"metadata": metadata, "timeout": CALL_SECONDS_MAX}
