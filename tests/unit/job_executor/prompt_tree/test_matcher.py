"""How much of a prompt each candidate holds, by the identities that its own engine computes."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.blocks import identify
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.links.links import Links
from services.job_executor.prompt_tree import matcher as matcher_module
from services.job_executor.prompt_tree.matcher import PromptBlocks, PromptMatcher
from services.job_executor.prompt_tree.tree import PromptTree
from services.job_executor.scheduling.capacity import Capacity, Occupancy
from services.job_executor.tokenizer.pool import WorkPool
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Loaded
from services.task_executor.shell.translate import to_capabilities
from tests.servers import until

SALT = b"tenant"
BLOCK_SIZES = {"te-1": 4, "te-2": 8}


class LiveLink:
    """As much of a link as its group needs."""

    def __init__(self, member: cluster_pb2.Member) -> None:
        self.member, self.id, self.is_live = member, member.id, True
        self.tasks: dict[int, object] = {}
        self.reported = self.outstanding_at_report = 0
        self.capacity, self.occupancy = Capacity(), Occupancy()
        self.settled = asyncio.Event()

    def start(self) -> None:
        pass


def engine_config(block_size: int) -> EngineConfig:
    return EngineConfig(
        block_size=block_size,
        kv_blocks=100,
        max_tokens=50,
        vocab_size=1000,
        model_revision="r1",
        dtype="int8",
        kv_dtype="bfloat16",
        kv_layout="paged",
    )


def capabilities(block_size: int) -> cluster_pb2.Capabilities:
    """As they come from an engine through its shell."""
    config = engine_config(block_size)
    names = set(Loaded.__struct_fields__) - {"deployment"}
    loaded = Loaded(deployment="m", **{name: getattr(config, name) for name in names})
    return to_capabilities(loaded, "cpu", {})


@pytest.fixture
def links() -> Links:
    make: Any = LiveLink
    links = Links(make)
    links.adopt(
        [
            cluster_pb2.Member(
                id=name,
                kind=types.MEMBER_KIND_TASK_EXECUTOR,
                state=types.LIFECYCLE_STATE_READY,
                deployment="m",
                capabilities=capabilities(size),
            )
            for name, size in BLOCK_SIZES.items()
        ]
    )
    return links


@pytest.fixture
def pool() -> Iterator[WorkPool]:
    pool = WorkPool(threads=1, queue_max=0, seconds_max=60.0)
    yield pool
    pool.close()


def held(name: str, tokens: list[int], num_blocks: int) -> events_pb2.KvEvents:
    seed = engine_config(BLOCK_SIZES[name]).identity_seed(SALT)
    run = events_pb2.BlocksStored(identities=identify(seed, tokens)[:num_blocks])
    event = events_pb2.KvEvent(stored=run)
    return events_pb2.KvEvents(task_executor_id=name, incarnation=1, first_seq=1, events=[event])


@given(st.lists(st.integers(0, 999), max_size=40), st.sampled_from([1, 4, 16]))
def test_identities_are_those_of_the_engine_but_for_the_last_token(
    tokens: list[int], block_size: int
) -> None:
    seed = engine_config(block_size).identity_seed(SALT)
    usable = max(0, (len(tokens) - 1) // block_size)
    mine = PromptBlocks(tokens, SALT).identities(capabilities(block_size))
    assert mine == identify(seed, tokens)[:usable]
    others = PromptBlocks(tokens, b"another tenant").identities(capabilities(block_size))
    assert not set(mine) & set(others)


def test_who_holds_no_blocks_is_matched_with_none() -> None:
    assert PromptBlocks([1, 2, 3], SALT).identities(cluster_pb2.Capabilities()) == []
    assert PromptBlocks([], SALT).identities(capabilities(4)) == []


async def test_each_candidate_is_matched_in_its_own_blocks(links: Links, pool: WorkPool) -> None:
    tree, prompt = PromptTree(), list(range(100))
    tree.follow({"te-1": 1, "te-2": 1})
    tree.note_events(held("te-1", prompt, 5), 0.0)
    tree.note_events(held("te-2", prompt, 100), 0.0)
    matcher = PromptMatcher(tree, links, pool)
    blocks, again = await matcher.identify("m", [prompt, prompt], SALT)
    assert blocks is again, "one prompt of several choices is hashed once"
    shown = matcher.show(links.group_view("m"), blocks)
    assert {it.id: it.cached_tokens for it in shown.executors} == {"te-1": 20, "te-2": 96}


async def test_a_long_prompt_is_hashed_off_the_loop_and_a_busy_pool_costs_a_miss(
    links: Links, pool: WorkPool
) -> None:
    tree, prompt = PromptTree(), [at % 1000 for at in range(matcher_module.INLINE_TOKENS_MAX + 1)]
    tree.follow({"te-1": 1, "te-2": 1})
    tree.note_events(held("te-2", prompt, 10_000), 0.0)
    matcher, group = PromptMatcher(tree, links, pool), links.group_view("m")
    (blocks,) = await matcher.identify("m", [prompt], SALT)
    by_id = {it.id: it.cached_tokens for it in matcher.show(group, blocks).executors}
    assert by_id == {"te-1": 0, "te-2": matcher_module.INLINE_TOKENS_MAX}

    gate = threading.Event()
    busy = asyncio.create_task(pool.run(gate.wait))
    await until(lambda: pool.num_pending > 0, what="a pool without room")
    (blocks,) = await matcher.identify("m", [prompt], SALT)
    gate.set()
    await busy
    assert {it.cached_tokens for it in matcher.show(group, blocks).executors} == {0}
