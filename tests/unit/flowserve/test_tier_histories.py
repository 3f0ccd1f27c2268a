"""Random histories with tiers: however copies end and fail, each answer is the one given alone."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from services.task_executor.flowserve.scheduler.prefetch import CHOICES
from tests.unit.flowserve.harness import Harness, make_config
from tests.unit.flowserve.test_histories import EngineHistories


class TierHistories(EngineHistories):
    @initialize(
        kv_blocks=st.integers(8, 14),
        dram_blocks=st.integers(0, 24),
        disk_blocks=st.integers(0, 24),
        max_sequences=st.integers(1, 4),
        spare_tokens=st.integers(0, 12),
        depth=st.integers(1, 2),
        is_late=st.booleans(),
        choice=st.sampled_from(CHOICES),
    )
    def start_with_tiers(
        self,
        kv_blocks: int,
        dram_blocks: int,
        disk_blocks: int,
        max_sequences: int,
        spare_tokens: int,
        depth: int,
        is_late: bool,
        choice: str,
    ) -> None:
        config = make_config(
            max_tokens=28,
            kv_blocks=kv_blocks,
            kv_dram_blocks=dram_blocks,
            kv_disk_blocks=disk_blocks,
            max_sequences=max_sequences,
            max_step_tokens=max_sequences + spare_tokens,
        )
        self.harness = Harness(config, depth, is_late=is_late)
        self.harness.scheduler.prefetch.choice = choice

    @rule(first=st.integers(1, 6), tail=st.integers(1, 3), max_tokens=st.integers(0, 4))
    def submit_long(self, first: int, tail: int, max_tokens: int) -> None:
        """Six prefixes of four blocks: together more than the device holds."""
        self.harness.submit([first] * 17 + [tail], max_tokens)

    @rule(steps=st.integers(1, 8), copies=st.integers(1, 3))
    def step_and_copy(self, steps: int, copies: int) -> None:
        for _ in range(steps):
            self.harness.step()
            self.harness.mover.finish(copies)

    @precondition(lambda self: self.harness.mover.under_way)
    @rule(count=st.integers(1, 8), at=st.integers(0, 40))
    def end_copies(self, count: int, at: int) -> None:
        self.harness.mover.finish(count, at=at)

    @precondition(lambda self: self.harness.mover.under_way)
    @rule(at=st.integers(0, 40))
    def fail_copy(self, at: int) -> None:
        self.harness.mover.finish(1, is_good=False, at=at)

    @precondition(lambda self: self.harness.mover.on_disk)
    @rule(block=st.integers(0, 23))
    def damage_file(self, block: int) -> None:
        self.harness.mover.damage(block)

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.drain()
        while self.harness.cache.num_copying:  # what is put away when all have ended
            self.harness.mover.finish()
            self.harness.step()
        super().teardown()


TestTierHistories = TierHistories.TestCase
TestTierHistories.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
