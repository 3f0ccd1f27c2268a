"""Who a KV block is: the chained hash of the tokens up to its end, and of what shaped their KV.

Equal identities mean interchangeable KV: same model, adapter, tenant, format and every token from
the start of the prompt to the end of the block. A block that is not full has no identity.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

import msgspec
from xxhash import xxh3_128_digest

IDENTITY_BYTES = 16

_TOKEN_CODE = "I"  # 4 bytes on every platform we build for
_TOKEN_BYTES = array(_TOKEN_CODE).itemsize


class BlockIdentitySeed(msgspec.Struct, frozen=True, kw_only=True):
    """What besides the tokens decides whether two blocks may stand for one another."""

    model_revision: str
    block_size: int
    adapter: str = ""
    dtype: str = ""  # what computed it: int8 linears give other values than those in float
    kv_dtype: str = ""  # what it is kept in
    kv_layout: str = ""
    tenant_salt: bytes = b""

    def root(self) -> bytes:
        """The parent of every first block."""
        texts = (self.model_revision, self.adapter, self.dtype, self.kv_dtype, self.kv_layout)
        fields = [*(text.encode() for text in texts), self.tenant_salt]
        # Lengths go in too, so that no two seeds run together to the same bytes.
        sized = b"".join(struct.pack("<I", len(field)) + field for field in fields)
        return xxh3_128_digest(struct.pack("<I", self.block_size) + sized)


def pack_blocks(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The full blocks of a sequence as bytes: 4 little-endian bytes a token."""
    tokens = array(_TOKEN_CODE, token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    packed = tokens.tobytes()
    width = block_size * _TOKEN_BYTES
    return [packed[at : at + width] for at in range(0, len(packed) - width + 1, width)]


def chain(parent: bytes, blocks: Iterable[bytes]) -> list[bytes]:
    """The identities of packed blocks that follow `parent`, each hashed over the one before."""
    identities = []
    for block in blocks:
        parent = xxh3_128_digest(parent + block)
        identities.append(parent)
    return identities


def identify(seed: BlockIdentitySeed, token_ids: Sequence[int]) -> list[bytes]:
    """One identity for every full block of `token_ids`."""
    return chain(seed.root(), pack_blocks(token_ids, seed.block_size))
