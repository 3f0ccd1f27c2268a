"""Shows a policy how much of a prompt each candidate holds already."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from deepflow.core.blocks import BlockIdentitySeed, identify
from deepflow.errors import DeepFlowError
from deepflow.v1 import cluster_pb2
from services.job_executor.links.links import Links
from services.job_executor.prompt_tree.tree import PromptTree
from services.job_executor.scheduling.policy import GroupView
from services.job_executor.tokenizer.pool import WorkPool

log = logging.getLogger(__name__)

# Fewer tokens are hashed (25 tokens a microsecond) faster than a thread is woken.
INLINE_TOKENS_MAX = 16_384


class PromptBlocks:
    """One prompt's block identities, computed once for each way that blocks are identified."""

    def __init__(self, token_ids: Sequence[int], salt: bytes) -> None:
        self._token_ids = token_ids
        self._salt = salt
        self._identities: dict[BlockIdentitySeed, list[bytes]] = {}

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    def identities(self, capabilities: cluster_pb2.Capabilities) -> list[bytes]:
        """The full blocks that a match may use: at least one token is always left to compute."""
        if not (capabilities.block_size and self._token_ids):
            return []
        seed = _seed(capabilities, self._salt)
        if seed not in self._identities:
            self._identities[seed] = identify(seed, self._token_ids[:-1])
        return self._identities[seed]


class PromptMatcher:
    def __init__(self, tree: PromptTree, links: Links, pool: WorkPool) -> None:
        self._tree = tree
        self._links = links
        self._pool = pool

    async def identify(
        self, model: str, prompts: Sequence[list[int]], salt: bytes
    ) -> list[PromptBlocks]:
        """The blocks of each prompt, hashed by now; the same prompt twice is hashed once.

        Where there is no time to hash them they match nowhere: that costs a miss, not the job.
        """
        blocks = {id(prompt): PromptBlocks(prompt, salt) for prompt in prompts}
        kinds = self._links.capabilities(model)

        def hash_all() -> None:
            for it in blocks.values():
                for capabilities in kinds:
                    it.identities(capabilities)

        if sum(it.num_tokens for it in blocks.values()) <= INLINE_TOKENS_MAX:
            hash_all()
        else:
            try:
                await self._pool.run(hash_all)
            except DeepFlowError as error:
                log.info("placed by load alone: %s", error)
                return [PromptBlocks((), salt) for _ in prompts]
        return [blocks[id(prompt)] for prompt in prompts]

    def show(self, group: GroupView, prompt: PromptBlocks) -> GroupView:
        """The same candidates, each with the tokens of this prompt that it need not compute."""
        return GroupView(
            tuple(
                replace(it, cached_tokens=self._cached_tokens(it.id, prompt))
                for it in group.executors
            )
        )

    def _cached_tokens(self, task_executor_id: str, prompt: PromptBlocks) -> int:
        capabilities = self._links.get(task_executor_id).member.capabilities
        num_blocks = self._tree.match(task_executor_id, prompt.identities(capabilities))
        return num_blocks * capabilities.block_size


def _seed(capabilities: cluster_pb2.Capabilities, salt: bytes) -> BlockIdentitySeed:
    """As the engine of that task executor makes it."""
    return BlockIdentitySeed(
        model_revision=capabilities.model_revision,
        block_size=capabilities.block_size,
        dtype=capabilities.dtype,
        kv_dtype=capabilities.kv_dtype,
        kv_layout=capabilities.kv_layout,
        tenant_salt=salt,
    )
