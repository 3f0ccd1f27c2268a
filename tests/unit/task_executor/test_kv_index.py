"""The shell's replica of the prefix index, and how it is read as a whole."""

from hypothesis import given
from hypothesis import strategies as st

from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from services.task_executor.flowserve.messages import KvChange
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.shell.kv_events import KvEventPublisher

BLOCK_SIZE = 2


def publisher() -> KvEventPublisher:
    return KvEventPublisher(Bus(ServiceConfig(), "te"), "te", 7)


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=20), st.integers(1, 5)
)
def test_the_replica_is_what_the_cache_can_match(prompts: list[list[int]], blocks_max: int) -> None:
    """A real cache, small enough to evict, tells the shell what it does."""
    cache, shell = RelationalTensorCache(num_blocks=9, block_size=BLOCK_SIZE), publisher()
    for prompt in prompts:
        chain = BlockChain(b"root", BLOCK_SIZE)
        matched = cache.match_by_prefix_token(chain, prompt)
        blocks = cache.alloc_blocks(matched, len(prompt))
        assert blocks is not None
        cache.preserve(chain, blocks, len(matched), len(prompt) // BLOCK_SIZE)
        cache.free(blocks)
        shell.add(cache.drain_changes())
    for prompt in prompts:
        chain = BlockChain(b"root", BLOCK_SIZE)
        num_matched = len(cache.match_by_prefix_token(chain, [*prompt, 0]))
        held = [identity in shell.index for identity in chain.identities]
        num_held = held.index(False) if False in held else len(held)
        assert num_matched == min(num_held, len(prompt) // BLOCK_SIZE)
    chunks = list(shell.read_index(blocks_max))
    assert [it.number for it in chunks] == list(range(chunks[0].count))
    assert {(it.incarnation, it.seq) for it in chunks} == {(7, shell.last_seq)}
    parents, told = dict[bytes, bytes](), []
    for chunk in chunks:
        assert sum(len(run.identities) for run in chunk.runs) <= blocks_max
        for run in chunk.runs:
            parent = run.parent
            for identity in run.identities:
                parents[identity], parent = parent, identity
                told.append(identity)
    assert len(told) == len(parents) == len(shell.index)
    assert (list(parents), list(parents.values())) == shell.index.copy()


def test_a_reading_shows_one_moment() -> None:
    shell = publisher()
    shell.add([KvChange(True, b"", [b"a", b"b"])])
    reading = shell.read_index(1)
    first = next(reading)
    shell.add([KvChange(False, b"", [b"b"])])
    second = next(reading)
    assert (first.seq, second.seq, second.runs[0].identities[0]) == (1, 1, b"b")
    assert len(shell.index) == 1 and shell.last_seq == 2


def test_a_step_without_changes_uses_no_number() -> None:
    shell = publisher()
    shell.add([])
    assert shell.last_seq == 0
    shell.cleared()
    assert shell.last_seq == 1 and [it.count for it in shell.read_index(10)] == [1]
