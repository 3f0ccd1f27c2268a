"""Which tokens of a context are the same whatever follows, and what a use of them should hit. Pure.

A template writes something behind the last message, and a tokenizer joins what it finds at a seam:
so the context is followed by one thing and another, and what all of these have in common is kept.
"""

import hashlib
from array import array
from collections.abc import Sequence

from deepflow.v1 import contexts_pb2

DIGEST_BYTES = 16


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with: found by halves, since long lists are compared fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """What all of them begin with; there is at least one."""
    first, *others = prompts
    return first[: min((common_length(first, it) for it in others), default=len(first))]


def digest_of(token_ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("I", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


def begins_with(prompt: Sequence[int], record: contexts_pb2.ContextRecord) -> bool:
    """Whether a prompt has the context's tokens in front, each and in order."""
    count = record.num_tokens
    return len(prompt) >= count and digest_of(prompt[:count]) == record.tokens_digest


def expected_hit(num_tokens: int, prompt_tokens: int, block_size: int) -> int:
    """Of a prompt that begins with so many kept tokens, those that need not be computed.

    Only whole blocks are kept, and the last token is always computed.
    """
    if not block_size:
        return 0
    return min(num_tokens, prompt_tokens - 1) // block_size * block_size
