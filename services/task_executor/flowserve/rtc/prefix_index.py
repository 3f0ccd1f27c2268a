"""Which block holds which prefix: one node a full block, found by its chained identity."""

from services.task_executor.flowserve.rtc.block_chain import BlockChain


class PrefixNode:
    __slots__ = ("block", "content", "identity")

    def __init__(self, identity: bytes, content: bytes, block: int) -> None:
        self.identity = identity
        self.content = content
        self.block = block


class PrefixIndex:
    """Flat on purpose: the chained identity names the whole path to a node.

    A node may outlive an ancestor (two sequences that computed the same prefix at once keep a copy
    each, and only one of the copies is known here). Such a node is merely out of reach until its
    ancestor is known again.
    """

    def __init__(self) -> None:
        self._by_identity: dict[bytes, PrefixNode] = {}
        self._by_block: dict[int, PrefixNode] = {}

    def __len__(self) -> int:
        return len(self._by_identity)

    def knows_block(self, block: int) -> bool:
        return block in self._by_block

    def longest_match(self, chain: BlockChain, limit: int) -> list[int]:
        """The blocks of the longest known prefix, at most `limit` of them.

        The tokens are compared at every node, so a colliding or forged identity is only a miss.
        """
        blocks: list[int] = []
        for identity, content in zip(chain.identities[:limit], chain.contents, strict=False):
            node = self._by_identity.get(identity)
            if node is None or node.content != content:
                break
            blocks.append(node.block)
        return blocks

    def add(self, identity: bytes, content: bytes, block: int) -> bool:
        """False where the identity is known already: the first block that held it stays."""
        if identity in self._by_identity:
            return False
        node = PrefixNode(identity, content, block)
        self._by_identity[identity] = self._by_block[block] = node
        return True

    def remove_block(self, block: int) -> bytes:
        """Forget a block; answers the identity it had."""
        node = self._by_block.pop(block)
        del self._by_identity[node.identity]
        return node.identity

    def check(self) -> None:
        assert len(self._by_block) == len(self._by_identity)
        for block, node in self._by_block.items():
            assert node.block == block and self._by_identity[node.identity] is node
