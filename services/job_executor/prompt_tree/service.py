"""PromptTreeService: a tree in a few words, for whoever holds it against the truth."""

import asyncio
from collections.abc import Iterable
from typing import Any

from deepflow.core.blocks import IDENTITY_BYTES
from deepflow.errors import RateLimited
from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import PromptTreeServiceServicer
from services.job_executor.prompt_tree.tree import PromptTree

RETRY_SECONDS = 1.0


class PromptTreeService(PromptTreeServiceServicer):
    """One description at a time: a big tree takes a while to copy."""

    def __init__(self, tree: PromptTree) -> None:
        self._tree = tree
        self._is_describing = False

    async def DescribePromptTree(
        self, request: cache_pb2.DescribePromptTreeRequest, context: Any
    ) -> cache_pb2.DescribePromptTreeResponse:
        if self._is_describing:
            raise RateLimited(
                "this prompt tree is being described already",
                reason="prompt_tree_busy",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._is_describing = True
        try:
            branches = [await self._branch(name) for name in sorted(self._tree)]
        finally:
            self._is_describing = False
        found = (branch for branch in branches if branch is not None)
        return cache_pb2.DescribePromptTreeResponse(branches=found)

    async def _branch(self, name: str) -> cache_pb2.PromptTreeBranch | None:
        follower = self._tree.get(name)
        if follower is None:
            return None  # it left meanwhile
        branch = cache_pb2.PromptTreeBranch(
            task_executor_id=name,
            incarnation=follower.incarnation,
            seq=follower.seq,
            blocks=len(follower.blocks),
        )
        # A copy of this moment; the loop, which passes tokens on, does not wait for the sum.
        branch.digest = await asyncio.to_thread(digest, tuple(follower.blocks))
        return branch


def digest(identities: Iterable[bytes]) -> bytes:
    """Of a set of identities, which are hashes: XOR of them tells any two sets apart."""
    combined = 0
    for identity in identities:
        combined ^= int.from_bytes(identity)
    return combined.to_bytes(IDENTITY_BYTES)
