"""One full block of tokens that is known to the cache, and where its KV lies."""

from services.task_executor.flowserve.rtc.copies import Tier

NOWHERE = -1


class CacheNode:
    __slots__ = ("arriving", "blocks", "content", "identity")

    def __init__(self, identity: bytes, content: bytes) -> None:
        self.identity = identity
        self.content = content
        self.blocks = [NOWHERE] * len(Tier)  # by tier
        self.arriving: set[Tier] = set()  # where copies of it are under way to

    def is_in(self, tier: Tier) -> bool:
        return self.blocks[tier] != NOWHERE

    @property
    def is_somewhere(self) -> bool:
        return any(block != NOWHERE for block in self.blocks)

    @property
    def nearest(self) -> Tier:
        return next(tier for tier in Tier if self.is_in(tier))

    def is_safe_without(self, tier: Tier) -> bool:
        """Would a copy in a farther tier be left?"""
        return any(block != NOWHERE for block in self.blocks[tier + 1 :])
