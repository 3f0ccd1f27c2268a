import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from deepflow.core.blocks import (
    IDENTITY_BYTES,
    BlockIdentitySeed,
    chain,
    identify,
    pack_blocks,
)

SEED = BlockIdentitySeed(model_revision="r1", block_size=4)
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_identity_is_the_chained_hash_of_little_endian_tokens() -> None:
    root = SEED.root()
    first = xxh3_128_digest(root + struct.pack("<4I", 1, 2, 3, 4))
    second = xxh3_128_digest(first + struct.pack("<4I", 5, 6, 7, 8))
    assert identify(SEED, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == [first, second]
    assert len(first) == IDENTITY_BYTES


@given(token_lists, st.integers(1, 9))
def test_only_full_blocks_are_packed_and_nothing_is_lost(tokens: list[int], size: int) -> None:
    blocks = pack_blocks(tokens, size)
    unpacked = [token for block in blocks for token in struct.unpack(f"<{size}I", block)]
    assert unpacked == tokens[: len(tokens) // size * size]


@given(token_lists, token_lists)
def test_identities_are_shared_exactly_as_far_as_the_tokens_are(
    left: list[int], right: list[int]
) -> None:
    pairs = zip(identify(SEED, left), identify(SEED, right), strict=False)
    for index, (a, b) in enumerate(pairs):
        end = (index + 1) * SEED.block_size
        assert (a == b) == (left[:end] == right[:end])


@given(token_lists, st.integers(0, 10))
def test_a_chain_continues_where_it_stopped(tokens: list[int], cut: int) -> None:
    blocks = pack_blocks(tokens, 4)
    head = chain(SEED.root(), blocks[:cut])
    tail = chain(head[-1] if head else SEED.root(), blocks[cut:])
    assert head + tail == identify(SEED, tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"model_revision": "r2"},
        {"block_size": 8},
        {"adapter": "lora"},
        {"dtype": "int8"},
        {"kv_dtype": "float32"},
        {"kv_layout": "paged"},
        {"tenant_salt": b"tenant"},
    ],
)
def test_everything_that_shapes_kv_changes_the_root(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"model_revision": "r1", "block_size": 4}
    assert BlockIdentitySeed(**(fields | change)).root() != SEED.root()


def test_fields_do_not_run_into_each_other() -> None:
    left = BlockIdentitySeed(model_revision="ab", adapter="c", block_size=4)
    right = BlockIdentitySeed(model_revision="a", adapter="bc", block_size=4)
    assert left.root() != right.root()
