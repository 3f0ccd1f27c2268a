"""Which prefixes are known: one node a full block, found by its chained identity."""

from collections.abc import Iterator

from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.node import CacheNode


class PrefixIndex:
    """Flat on purpose: the chained identity names the whole path to a node.

    A node may outlive an ancestor (two sequences that computed the same prefix at once keep a copy
    each, and only one of the copies is known here). Such a node is merely out of reach until its
    ancestor is known again.
    """

    def __init__(self) -> None:
        self._by_identity: dict[bytes, CacheNode] = {}

    def __len__(self) -> int:
        return len(self._by_identity)

    def __iter__(self) -> Iterator[CacheNode]:
        return iter(self._by_identity.values())

    def longest_match(self, chain: BlockChain, limit: int) -> list[CacheNode]:
        """The longest known prefix, at most `limit` blocks of it.

        The tokens are compared at every node, so a colliding or forged identity is only a miss.
        """
        nodes: list[CacheNode] = []
        for identity, content in zip(chain.identities[:limit], chain.contents, strict=False):
            node = self._by_identity.get(identity)
            if node is None or node.content != content:
                break
            nodes.append(node)
        return nodes

    def get(self, identity: bytes) -> CacheNode | None:
        return self._by_identity.get(identity)

    def add(self, identity: bytes, content: bytes) -> CacheNode:
        assert identity not in self._by_identity, "an identity is added twice"
        node = self._by_identity[identity] = CacheNode(identity, content)
        return node

    def remove(self, node: CacheNode) -> None:
        del self._by_identity[node.identity]
