"""Several ranks, each a real process with tiers of its own: KV that comes back is one rank's."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.engine import FlowServe, Generation
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.node import CacheNode
from services.task_executor.flowserve.scheduler import copy_watch
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS
from tests.integration.checkpoints import Checkpoint

BLOCK = 16
PREFIX_BLOCKS = 4
DRAM_BLOCKS, DISK_BLOCKS = 12, 60
USUAL: dict[str, Any] = {"kv_blocks": 12, "max_tokens": 128, "max_sequences": 4, "cpu_threads": 1}
GREEDY = SamplingParams(8, temperature=0.0, logprobs=0, ignore_eos=True)
CROWDS_MAX = 40
DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda it: it[:-1] + bytes([it[-1] ^ 1]),
    lambda it: it[:-1],
]


@dataclass(frozen=True)
class Split:
    shape: str
    tensor: int
    pipeline: int
    copies: int  # of every KV head


SPLITS = [
    Split("llama: gqa-4, biases, narrow heads", 2, 1, 2),
    Split("mistral: window of 19, gqa-4, tied", 1, 2, 1),
    # Stages of two layers and of one: shares of a block differ in size.
    Split("qwen2: yarn rope, upper layers slide, gqa-3", 2, 2, 1),
]


class Stand:
    def __init__(self, split: Split, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.disk = checkpoint, folder / "kv"
        self.ranks = split.tensor * split.pipeline
        self.draw = random.Random(7)
        self.alone = FlowServe(folder / "model", **USUAL)
        block_bytes = split.copies * self.alone.config.kv_bytes // self.alone.config.kv_blocks
        settings = {
            **USUAL,
            "tensor_parallel": split.tensor,
            "pipeline_parallel": split.pipeline,
            "steps_in_flight": 2,
            "kv_dram_bytes": DRAM_BLOCKS * block_bytes,
            "kv_disk_bytes": DISK_BLOCKS * (block_bytes + 64 * self.ranks),
        }
        load = Load(
            "t", str(folder / "model"), "cpu", "r1", settings, kv_disk_folder=str(self.disk)
        )
        self.engine = FlowServe.loaded(load)
        self.master.prefetch.choice = ALWAYS

    @property
    def master(self) -> Master:
        return self.engine._master

    def ask(self, prompt: list[int]) -> Generation:
        """Of the ranks; it is what one rank alone answers."""
        [answer] = self.engine.generate([prompt], GREEDY)
        [expected] = self.alone.generate([prompt], GREEDY)
        assert (answer.message, answer.token_ids) == ("", expected.token_ids)
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        return answer

    def nodes(self, prefix: list[int]) -> list[CacheNode]:
        chain = BlockChain(self.engine.config.identity_seed(b"").root(), BLOCK)
        return self.master.cache.match_in_tiers(chain, [*prefix, 0])

    def empty_device(self) -> None:
        """Put all of it away, then take every block of the device once."""
        cache = self.master.cache
        while unsafe := cache.idle_unsafe():
            for block in unsafe:
                cache.copy(block)
            self.settle()
        blocks = cache.alloc_blocks([], cache.num_available * BLOCK)
        assert blocks is not None
        cache.free(blocks)

    def settle(self) -> None:
        """Until no copy is under way."""
        while True:
            self.master.step()
            if not self.master.cache.num_copying:
                return
            wait_readable(self.master.wake_fds, 1.0)

    def bring(self, prefix: list[int], tier: Tier) -> None:
        """Have it computed, then ask for other things until it lies in that tier only."""
        self.ask([*prefix, 5])
        self.empty_device()
        for _ in range(CROWDS_MAX):
            nodes = self.nodes(prefix)
            assert len(nodes) == PREFIX_BLOCKS
            if all(node.nearest is tier for node in nodes):
                return
            vocabulary = self.checkpoint.vocab_size
            self.ask([self.draw.randrange(3, vocabulary) for _ in range(PREFIX_BLOCKS * BLOCK + 5)])
            self.empty_device()
        pytest.fail(f"the prefix never lies in {tier.name} only")

    def close(self) -> None:
        self.engine.close()
        self.alone.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is only slow is waited for."""
    monkeypatch.setattr(copy_watch, "PATIENCE_SECONDS", 120.0)


@pytest.fixture(scope="module", params=SPLITS, ids=lambda it: f"{it.tensor}x{it.pipeline}")
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("ranks")
    stand = Stand(request.param, Checkpoint(folder / "model", request.param.shape), folder)
    yield stand
    assert len(list(stand.disk.glob("life-*"))) == stand.ranks
    stand.close()
    assert not list(stand.disk.glob("life-*")), "a rank leaves its blocks behind"


def test_tiers_are_those_of_the_deployment(stand: Stand) -> None:
    config = stand.engine.config
    assert (config.kv_dram_blocks, config.kv_disk_blocks) == (DRAM_BLOCKS, DISK_BLOCKS)


@pytest.mark.parametrize("tier", [Tier.DRAM, Tier.DISK], ids=lambda it: it.name)
def test_prefix_hits_answer_as_one_rank_does(stand: Stand, tier: Tier) -> None:
    prefix = stand.checkpoint.prompt(PREFIX_BLOCKS * BLOCK, seed=tier)
    stand.bring(prefix, tier)
    assert stand.ask([*prefix, 6]).cached_tokens == len(prefix)
    assert stand.master.prefetch.costs.block_seconds[tier] > 0


def test_a_share_that_is_damaged_is_a_miss_for_all(stand: Stand) -> None:
    """The last rank's of the third block; its other files and everybody else's are whole."""
    prefix = stand.checkpoint.prompt(PREFIX_BLOCKS * BLOCK, seed=9)
    for damage in DAMAGES:
        stand.bring(prefix, Tier.DISK)
        block = stand.nodes(prefix)[2].blocks[Tier.DISK]
        [file] = stand.disk.glob(f"life-rank-{stand.ranks - 1}-*/{block}.kv")
        file.write_bytes(damage(file.read_bytes()))
        assert stand.ask([*prefix, 6]).cached_tokens == 2 * BLOCK
    stand.bring(prefix, Tier.DISK)
    assert stand.ask([*prefix, 6]).cached_tokens == len(prefix)


def test_a_folder_that_is_removed_is_made_again_by_every_rank(stand: Stand) -> None:
    prefix = stand.checkpoint.prompt(PREFIX_BLOCKS * BLOCK, seed=11)
    stand.bring(prefix, Tier.DISK)
    shutil.rmtree(stand.disk)
    assert stand.ask([*prefix, 6]).cached_tokens == 0
    stand.bring(prefix, Tier.DISK)
    assert stand.ask([*prefix, 6]).cached_tokens == len(prefix)
