"""The cache's own side of its tiers: what is held, what is safe, what goes first."""

from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier

BLOCK_SIZE = 4
OLD, NEW = list(range(17)), list(range(100, 113))


def make_cache(device: int = 8, dram: int = 20, disk: int = 0) -> RelationalTensorCache:
    return RelationalTensorCache(device + 1, BLOCK_SIZE, dram_blocks=dram, disk_blocks=disk)


def make_chain(tokens: list[int], root: bytes = b"root") -> BlockChain:
    chain = BlockChain(root, BLOCK_SIZE)
    chain.extend(tokens)
    return chain


def compute(cache: RelationalTensorCache, tokens: list[int]) -> None:
    chain = make_chain(tokens)
    matched = cache.match_by_prefix_token(chain, tokens)
    blocks = cache.alloc_blocks(matched, len(tokens))
    assert blocks is not None
    cache.preserve(chain, blocks, len(matched), len(tokens) // BLOCK_SIZE)
    cache.free(blocks)


def finish(cache: RelationalTensorCache, *, is_good: bool = True) -> list[BlockCopy]:
    """All that may begin, ended."""
    copies = cache.take_copies(landed=1 << 30)
    for copy in copies:
        cache.finish_copy(CopyDone(copy.number, is_good, 0.0))
    cache.check([])
    return copies


def swap(cache: RelationalTensorCache) -> list[BlockCopy]:
    """What is due in the background, ended."""
    cache.swap_out()
    return finish(cache)


def put_away(cache: RelationalTensorCache) -> None:
    """Everything idle to the next tier, and nothing left on the device."""
    for block in cache.idle_unsafe():
        assert cache.copy(block)
    finish(cache)
    cache.free(cache.alloc_blocks([], cache.num_available * BLOCK_SIZE) or [])
    assert cache.num_idle(Tier.DEVICE) == 0


def tiers_of(cache: RelationalTensorCache, tokens: list[int]) -> list[Tier]:
    return [node.nearest for node in cache.match_in_tiers(make_chain(tokens), tokens)]


def test_a_copied_block_goes_first_and_is_not_lost() -> None:
    cache = make_cache(device=8)
    compute(cache, OLD)
    compute(cache, NEW)
    young = cache.match_by_prefix_token(make_chain(NEW), NEW)
    for block in reversed(young):
        assert cache.copy(block)
    finish(cache)
    cache.drain_changes()
    blocks = cache.alloc_blocks([], 4 * BLOCK_SIZE)
    assert blocks is not None and set(young) <= set(blocks)
    assert tiers_of(cache, NEW) == [Tier.DRAM] * 3 and tiers_of(cache, OLD) == [Tier.DEVICE] * 4
    assert cache.drain_changes() == []


def test_a_block_is_copied_once() -> None:
    cache = make_cache()
    compute(cache, OLD)
    (block, *_) = cache.idle_unsafe()
    assert cache.copy(block) and not cache.copy(block)
    finish(cache)
    assert not cache.copy(block)


def test_what_is_being_copied_is_not_to_be_had() -> None:
    cache = make_cache(device=8)
    compute(cache, OLD)
    for block in cache.idle_unsafe():
        cache.copy(block)
    assert cache.num_available == 4 and cache.num_copying == 4
    assert cache.alloc_blocks([], 5 * BLOCK_SIZE) is None
    finish(cache)
    assert cache.num_available == 8


def test_copies_to_blocks_that_are_still_written_wait_for_that_step() -> None:
    cache = make_cache(device=4)
    compute(cache, OLD[:9])
    put_away(cache)
    blocks = cache.alloc_blocks([], 4 * BLOCK_SIZE)
    assert blocks is not None
    cache.free(blocks, until=7)
    number = cache.populate(cache.match_in_tiers(make_chain(OLD), OLD))
    assert number is not None and cache.take_copies(landed=6) == []
    assert len(cache.take_copies(landed=7)) == 2 and cache.query_populate(number)


def test_what_is_there_already_stays_while_the_rest_is_fetched() -> None:
    cache = make_cache(device=5)
    compute(cache, OLD)
    put_away(cache)
    nodes = cache.match_in_tiers(make_chain(OLD), OLD)
    assert cache.populate(nodes[:2]) is not None
    finish(cache)
    compute(cache, NEW)  # younger, and nothing is free any more
    number = cache.populate(nodes)
    assert number is not None
    finish(cache)
    assert not cache.query_populate(number)
    assert tiers_of(cache, OLD) == [Tier.DEVICE] * 4


def test_nothing_is_fetched_where_there_is_no_room() -> None:
    cache = make_cache(device=5)
    compute(cache, OLD)
    put_away(cache)
    nodes = cache.match_in_tiers(make_chain(OLD), OLD)
    assert cache.populate(nodes, spare=2) is None
    held = cache.alloc_blocks([], 2 * BLOCK_SIZE)
    assert held is not None and cache.populate(nodes) is None
    assert cache.num_copying == 0
    cache.check([held])


def test_a_failed_copy_changes_nothing_but_a_disks() -> None:
    cache = make_cache(dram=0, disk=20)
    compute(cache, OLD)
    (block, *_) = cache.idle_unsafe()
    cache.copy(block)
    finish(cache, is_good=False)
    assert tiers_of(cache, OLD) == [Tier.DEVICE] * 4 and len(cache.idle_unsafe()) == 4
    put_away(cache)
    cache.drain_changes()
    number = cache.populate(cache.match_in_tiers(make_chain(OLD), OLD))
    assert number is not None
    finish(cache, is_good=False)
    assert not cache.query_populate(number) and tiers_of(cache, OLD) == []
    (change,) = cache.drain_changes()
    assert not change.stored and len(change.identities) == 4


def test_blocks_are_put_away_until_enough_can_go() -> None:
    cache = make_cache(device=8, dram=20)
    compute(cache, OLD)
    cache.swap_out()
    assert finish(cache) == []  # four are free: half of the device
    compute(cache, NEW)
    turns = 0
    while swap(cache):
        turns += 1
    assert turns and cache.num_available == 8
    assert len(cache.idle_unsafe()) == 4


def test_a_small_tier_is_not_filled_over_and_over() -> None:
    """What was put away last must not push out what was put away just before, for ever."""
    cache = make_cache(device=40, dram=4)
    for first in range(0, 400, 50):
        compute(cache, list(range(first, first + 17)))
    turns = 0
    while swap(cache):
        turns += 1
        assert turns < 50


def test_the_dram_passes_on_to_the_disk() -> None:
    cache = make_cache(device=8, dram=4, disk=20)
    compute(cache, OLD)
    put_away(cache)
    compute(cache, NEW)
    for block in cache.idle_unsafe():
        while swap(cache):
            pass
        cache.copy(block)
        finish(cache)
    cache.free(cache.alloc_blocks([], 8 * BLOCK_SIZE) or [])
    assert tiers_of(cache, OLD) == [Tier.DRAM, *[Tier.DISK] * 3]
    assert tiers_of(cache, NEW) == [Tier.DRAM] * 3


def test_a_block_that_is_computed_again_is_on_the_device_again() -> None:
    cache = make_cache()
    compute(cache, OLD)
    put_away(cache)
    cache.drain_changes()
    blocks = cache.alloc_blocks([], len(OLD))
    assert blocks is not None
    cache.preserve(make_chain(OLD), blocks, 0, 4)
    cache.free(blocks)
    assert tiers_of(cache, OLD) == [Tier.DEVICE] * 4
    assert cache.idle_unsafe() == [] and cache.drain_changes() == []
    cache.check([])


def test_a_forged_identity_hits_in_no_tier() -> None:
    cache = make_cache()
    compute(cache, OLD)
    put_away(cache)
    forger = make_chain([7] * 17)
    forger.identities[:] = make_chain(OLD).identities
    assert cache.match_in_tiers(forger, [7] * 17) == []
    assert len(cache.match_in_tiers(make_chain(OLD), OLD)) == 4
    assert cache.match_in_tiers(make_chain(OLD, b"another tenant"), OLD) == []


def test_a_tier_that_takes_nothing_is_asked_less_and_less() -> None:
    cache = make_cache(device=8, dram=0, disk=20)
    compute(cache, OLD)
    compute(cache, NEW)
    asked = []
    for turn in range(200):
        cache.swap_out()
        if finish(cache, is_good=False):
            asked.append(turn)
    assert asked == [0, 9, 26, 59, 124]
    while not swap(cache):
        pass
    assert swap(cache), "once it takes something it is asked at once"
