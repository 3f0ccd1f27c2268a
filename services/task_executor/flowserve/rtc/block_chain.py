"""The full blocks of one sequence: their packed tokens and identities, each hashed once."""

from deepflow.core.blocks import chain, pack_blocks


class BlockChain:
    __slots__ = ("_root", "block_size", "contents", "identities")

    def __init__(self, root: bytes, block_size: int) -> None:
        self._root = root
        self.block_size = block_size
        self.contents: list[bytes] = []
        self.identities: list[bytes] = []

    def extend(self, token_ids: list[int]) -> None:
        """Cover the full blocks of `token_ids`, which begins with all that is covered already."""
        covered = len(self.identities) * self.block_size
        if len(token_ids) - covered < self.block_size:
            return
        blocks = pack_blocks(token_ids[covered:], self.block_size)
        parent = self.identities[-1] if self.identities else self._root
        self.identities += chain(parent, blocks)
        self.contents += blocks

    def parent_of(self, index: int) -> bytes:
        """The identity before block `index`; empty for the first."""
        return self.identities[index - 1] if index else b""
