"""Moves fingerprints between a device's blocks and two more tiers, as slowly as a test wants."""

from collections.abc import Sequence

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier

GARBAGE = -1


class FingerprintMover:
    """Between its begin and its end a copy's target holds garbage, and nobody may look there."""

    def __init__(self, cells: list[list[int]], config: EngineConfig) -> None:
        size = config.block_size
        self.tiers: dict[Tier, list[list[int]]] = {
            Tier.DEVICE: cells,
            Tier.DRAM: [[0] * size for _ in range(config.kv_dram_blocks)],
            Tier.DISK: [[0] * size for _ in range(config.kv_disk_blocks)],
        }
        self.on_disk: dict[int, tuple[bytes, bytes]] = {}  # whose block is in which file
        self.under_way: list[BlockCopy] = []
        self.done: list[CopyDone] = []
        self.num_done = dict.fromkeys(Tier, 0)  # good ones, by target
        self.num_failed = 0

    def submit(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            self._require_apart(copy)
            self.under_way.append(copy)
            self.tiers[copy.target][copy.target_block][:] = [GARBAGE] * self._size
            if copy.target is Tier.DISK:
                self.on_disk.pop(copy.target_block, None)

    def finish(self, count: int | None = None, *, is_good: bool = True, at: int = 0) -> None:
        """So many of those under way, beginning at one of them."""
        for _ in range(len(self.under_way) if count is None else count):
            if not self.under_way:
                return
            self._finish(self.under_way.pop(at % len(self.under_way)), is_good)

    def damage(self, block: int) -> None:
        """Whatever lies in that file of the disk, it is nobody's any more."""
        self.on_disk.pop(block, None)

    def take_done(self) -> list[CopyDone]:
        done, self.done = self.done, []
        return done

    @property
    def _size(self) -> int:
        return len(self.tiers[Tier.DEVICE][0])

    def _finish(self, copy: BlockCopy, is_good: bool) -> None:
        source = self.tiers[copy.source][copy.source_block]
        whose = (copy.identity, copy.content)
        if copy.source is Tier.DISK and self.on_disk.get(copy.source_block) != whose:
            is_good = False
        if is_good:
            assert GARBAGE not in source, "a block is copied before it is there"
            self.tiers[copy.target][copy.target_block][:] = source
            self.num_done[copy.target] += 1
            if copy.target is Tier.DISK:
                self.on_disk[copy.target_block] = whose
        self.num_failed += not is_good
        self.done.append(CopyDone(copy.number, is_good, 0.001))

    def _require_apart(self, copy: BlockCopy) -> None:
        for other in self.under_way:
            ends = {(other.source, other.source_block), (other.target, other.target_block)}
            assert (copy.target, copy.target_block) not in ends, "a block in use is overwritten"
            target = (other.target, other.target_block)
            assert (copy.source, copy.source_block) != target, "a block is read too early"
