"""How full the KV tiers are and what they were good for, one engine after another."""

from collections import Counter
from dataclasses import dataclass

from deepflow.v1 import events_pb2
from services.task_executor.flowserve.messages import KvReport, Loaded, TierReport
from services.task_executor.shell.histogram import Histogram

TIERS = ("device", "dram", "disk")  # as the engine numbers them

_FETCH_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_NOTHING = KvReport([TierReport(0, 0, 0)] * len(TIERS), 0, 0, 0, [])


@dataclass(frozen=True, slots=True)
class TierState:
    name: str
    blocks: int
    used_blocks: int
    kept_blocks: int
    block_bytes: int

    @property
    def by_state(self) -> dict[str, int]:
        """Blocks that are held, those that can be found again, and the rest."""
        free = self.blocks - self.used_blocks - self.kept_blocks
        return {"used": self.used_blocks, "kept": self.kept_blocks, "free": free}


class KvMeter:
    def __init__(self) -> None:
        self.hit_tokens: Counter[str] = Counter()  # by tier
        self.missed_tokens = 0
        self.choices: Counter[str] = Counter()  # fetch or compute
        self.copies: Counter[tuple[str, str, str]] = Counter()  # by source, target and outcome
        self.fetch_times = Histogram(*_FETCH_SECONDS)
        self._blocks = (0, 0, 0)
        self._block_bytes = 0
        self._last = _NOTHING  # of the model that is held

    def loaded(self, loaded: Loaded) -> None:
        # The trash block is nobody's; an encoder has none at all.
        self._blocks = (max(0, loaded.kv_blocks - 1), loaded.kv_dram_blocks, loaded.kv_disk_blocks)
        self._block_bytes = loaded.kv_bytes // loaded.kv_blocks if loaded.kv_blocks else 0
        self._last = _NOTHING

    def lost(self) -> None:
        self._blocks, self._last = (0, 0, 0), _NOTHING

    def add(self, report: KvReport) -> None:
        """A report counts from the load of its model on."""
        last, self._last = self._last, report
        for name, new, old in zip(TIERS, report.tiers, last.tiers, strict=True):
            self.hit_tokens[name] += new.hit_tokens - old.hit_tokens
        self.missed_tokens += report.missed_tokens - last.missed_tokens
        self.choices["fetch"] += report.fetches - last.fetches
        self.choices["compute"] += report.computes - last.computes
        self.copies += _copies(report) - _copies(last)
        for seconds in report.fetch_waits:
            self.fetch_times.observe(seconds)

    @property
    def tiers(self) -> list[TierState]:
        """Those that there are."""
        rows = zip(TIERS, self._blocks, self._last.tiers, strict=True)
        return [
            TierState(name, blocks, it.used_blocks, it.kept_blocks, self._block_bytes)
            for name, blocks, it in rows
            if blocks
        ]

    def fill(self, load: events_pb2.Load) -> None:
        for tier in self.tiers:
            load.kv_tiers.add(
                name=tier.name,
                bytes=tier.blocks * tier.block_bytes,
                used_bytes=tier.used_blocks * tier.block_bytes,
                kept_bytes=tier.kept_blocks * tier.block_bytes,
            )


def _copies(report: KvReport) -> "Counter[tuple[str, str, str]]":
    return Counter(
        {
            (TIERS[it.source], TIERS[it.target], "ok" if it.is_good else "failed"): it.count
            for it in report.copies
        }
    )
