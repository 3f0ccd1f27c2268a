"""What the cache tells the ranks to move, and what they answer: plain data, the same for each."""

from enum import IntEnum

import msgspec


class Tier(IntEnum):
    """Where a block of KV can lie; a smaller one is nearer to the model."""

    DEVICE = 0
    DRAM = 1
    DISK = 2


class BlockCopy(msgspec.Struct, frozen=True, array_like=True):
    """Copy one block. Until the answer neither end is touched by anything else."""

    number: int
    source: Tier
    source_block: int
    target: Tier
    target_block: int
    # Whose block it is: written beside the data on disk, and asked for when it is read again.
    identity: bytes
    content: bytes  # its packed tokens


class CopyDone(msgspec.Struct, frozen=True, array_like=True):
    number: int
    is_good: bool  # False: the target holds garbage, and so may the source, where that is a disk
    seconds: float
