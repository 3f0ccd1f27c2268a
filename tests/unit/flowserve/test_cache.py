from services.task_executor.flowserve.plan import TRASH_BLOCK
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache

BLOCK_SIZE = 4


def make_cache(num_blocks: int = 9) -> RelationalTensorCache:
    return RelationalTensorCache(num_blocks, BLOCK_SIZE)


def make_chain(root: bytes = b"root") -> BlockChain:
    return BlockChain(root, BLOCK_SIZE)


def fill(cache: RelationalTensorCache, tokens: list[int], root: bytes = b"root") -> list[int]:
    """Allocate, compute and preserve; answers the blocks, still held."""
    chain = make_chain(root)
    matched = cache.match_by_prefix_token(chain, tokens)
    blocks = cache.alloc_blocks(matched, len(tokens))
    assert blocks is not None
    cache.preserve(chain, blocks, len(matched), len(tokens) // BLOCK_SIZE)
    return blocks


def match(cache: RelationalTensorCache, tokens: list[int], root: bytes = b"root") -> list[int]:
    return cache.match_by_prefix_token(make_chain(root), tokens)


def test_a_freed_prefix_is_found_again() -> None:
    cache = make_cache()
    blocks = fill(cache, list(range(10)))
    cache.free(blocks)
    assert match(cache, [*range(8), 99, 99]) == blocks[:2]
    assert cache.num_available == 8


def test_a_whole_prompt_hit_leaves_a_token_to_compute() -> None:
    cache = make_cache()
    blocks = fill(cache, list(range(8)))
    assert match(cache, list(range(8))) == blocks[:1]
    assert match(cache, list(range(9))) == blocks


def test_only_what_was_preserved_is_matched() -> None:
    cache = make_cache()
    chain, tokens = make_chain(), list(range(12))
    cache.match_by_prefix_token(chain, tokens)
    blocks = cache.alloc_blocks([], len(tokens))
    assert blocks is not None and match(cache, tokens) == []
    cache.preserve(chain, blocks, 0, 1)
    assert match(cache, tokens) == blocks[:1]


def test_shared_blocks_are_freed_by_the_last_holder() -> None:
    cache = make_cache()
    first = fill(cache, list(range(9)))
    second = fill(cache, list(range(9)))
    assert second[:2] == first[:2] and second[2] != first[2]
    cache.free(first)
    assert cache.num_available == 5
    cache.check([second])
    cache.free(second)
    assert cache.num_available == 8
    cache.check([])


def test_two_that_computed_the_same_keep_a_copy_each() -> None:
    cache = make_cache()
    tokens = list(range(5))
    chains = make_chain(), make_chain()
    held = []
    for chain in chains:
        cache.match_by_prefix_token(chain, tokens)
        blocks = cache.alloc_blocks([], len(tokens))
        assert blocks is not None
        held.append(blocks)
    for chain, blocks in zip(chains, held, strict=True):
        cache.preserve(chain, blocks, 0, 1)
    assert match(cache, tokens) == held[0][:1]
    assert len(cache.drain_changes()) == 1
    cache.free(held[1])
    cache.check([held[0]])


def test_tenants_never_meet() -> None:
    cache = make_cache()
    cache.free(fill(cache, list(range(9)), b"one tenant"))
    assert match(cache, list(range(9)), b"another") == []


def test_a_forged_identity_is_only_a_miss() -> None:
    cache = make_cache()
    tokens = list(range(9))
    cache.free(fill(cache, tokens))
    honest, forger = make_chain(), make_chain()
    honest.extend(tokens)
    forger.extend([7] * 9)
    forger.identities[:] = honest.identities
    assert cache.match_by_prefix_token(honest, tokens) != []
    assert cache.match_by_prefix_token(forger, [7] * 9) == []


def test_eviction_takes_the_oldest_prefix_from_its_end() -> None:
    cache = make_cache(num_blocks=7)
    old, new = list(range(13)), [50, 51, 52, 53, 54]
    cache.free(fill(cache, old))
    cache.free(fill(cache, new))
    chain = make_chain()
    chain.extend(old)
    cache.drain_changes()
    evicted = []
    blocks: list[int] = []
    while cache.append_block(blocks):
        for change in cache.drain_changes():
            assert not change.stored
            evicted += change.identities
    assert evicted[:3] == chain.identities[::-1]
    assert len(evicted) == 4 and match(cache, new) == []


def test_a_hit_makes_a_prefix_young() -> None:
    cache = make_cache(num_blocks=5)
    cache.free(fill(cache, [1, 1, 1, 1, 1]))
    cache.free(fill(cache, [2, 2, 2, 2, 2]))
    cache.free(fill(cache, [1, 1, 1, 1, 9]))
    blocks = cache.alloc_blocks([], 3 * BLOCK_SIZE)
    assert blocks is not None
    assert match(cache, [1] * 5) and not match(cache, [2] * 5)


def test_matched_blocks_are_not_counted_as_room() -> None:
    cache = make_cache(num_blocks=4)
    cache.free(fill(cache, list(range(12))))
    matched = match(cache, list(range(16)))
    assert len(matched) == 3 and cache.num_available == 3
    assert cache.alloc_blocks(matched, 16) is None
    assert cache.num_available == 3
    assert cache.alloc_blocks(matched[:2], 12) is not None


def test_spare_blocks_are_left_for_others() -> None:
    cache = make_cache(num_blocks=4)
    assert cache.alloc_blocks([], 8, spare=2) is None
    assert cache.alloc_blocks([], 8, spare=1) is not None


def test_the_trash_block_is_nobodys() -> None:
    cache = make_cache()
    blocks: list[int] = []
    while cache.append_block(blocks):
        pass
    assert sorted(blocks) == list(range(1, 9)) and TRASH_BLOCK not in blocks


def test_changes_come_in_runs_with_their_parent() -> None:
    cache = make_cache()
    tokens = list(range(13))
    chain = make_chain()
    chain.extend(tokens)
    blocks = cache.alloc_blocks([], len(tokens))
    assert blocks is not None
    cache.preserve(chain, blocks, 0, 2)
    cache.preserve(chain, blocks, 2, 3)
    (change,) = cache.drain_changes()
    assert change.stored and change.parent == b"" and change.identities == chain.identities
    longer = fill(cache, [*tokens[:8], 9, 9, 9, 9, 9])
    (change,) = cache.drain_changes()
    assert change.parent == chain.identities[1] and len(change.identities) == 1
    cache.check([blocks, longer])
