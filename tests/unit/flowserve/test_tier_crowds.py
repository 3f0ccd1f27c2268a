"""Long crowded runs with tiers: a working set of several devices, so that much goes and comes.

Drawn from a seed rather than rule by rule: only long histories fill a tier and drain it again.
"""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS, CHOICES
from tests.unit.flowserve.fingerprint_executor import answer_alone
from tests.unit.flowserve.harness import Harness, make_config

MAX_TOKENS = 28


class Crowd:
    def __init__(self, seed: int, depth: int, is_late: bool, choice: str) -> None:
        draw = self.draw = random.Random(seed)
        max_sequences = draw.randint(1, 4)
        config = make_config(
            max_tokens=MAX_TOKENS,
            kv_blocks=draw.randint(8, 16),
            kv_dram_blocks=draw.choice([0, 6, 24]),
            kv_disk_blocks=draw.choice([0, 6, 40]),
            max_sequences=max_sequences,
            max_step_tokens=max_sequences + draw.randint(0, 12),
        )
        self.harness = Harness(config, depth, is_late=is_late)
        self.harness.scheduler.prefetch.choice = choice
        self.harness.copies_beside = draw.choice([0, 1, 8])
        self.prefixes = [
            [draw.randint(1, 3) for _ in range(draw.choice([4, 8, 16, 20]))] for _ in range(8)
        ]
        self.cancelled: set[int] = set()
        self.failing = draw.choice([0.0, 0.0, 0.2])  # share of the copies

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()
        self.harness.drain()
        while self.harness.cache.num_copying:
            self.harness.mover.finish()
            self.harness.step()
        self.check()

    def turn(self) -> None:
        draw, harness = self.draw, self.harness
        if draw.random() < 0.3:
            prompt = [*draw.choice(self.prefixes), *draw.choices(range(4, 8), k=draw.randint(1, 3))]
            harness.submit(
                prompt,
                draw.randint(0, 5),
                salt=draw.choice([b"", b"", b"tenant"]),
                priority=draw.choice([0, 0, 1]),
                prompt_logprobs=draw.choice([None, None, None, 1]),
                ignore_eos=draw.random() < 0.5,
            )
        if draw.random() < 0.03 and harness.submitted:
            handle = draw.choice(list(harness.submitted))
            self.cancelled.add(handle)
            harness.scheduler.cancel([handle])
        if draw.random() < 0.01:
            harness.executor.fault = draw.choice(["before", "after"])
        if draw.random() < 0.1:
            harness.mover.damage(draw.randrange(40))
        for _ in range(draw.choice([0, 0, 1, 2, 4])):
            is_good = draw.random() >= self.failing
            harness.mover.finish(1, is_good=is_good, at=draw.randrange(40))
        harness.step()

    def check(self) -> None:
        harness = self.harness
        for handle, message in harness.submitted.items():
            sampling = message.sampling
            expected = answer_alone(
                message.prompt_token_ids, sampling.max_tokens, ignore_eos=sampling.ignore_eos
            )
            answer = harness.answers[handle]
            assert answer == expected[: len(answer)]
            if handle not in self.cancelled | harness.disturbed:
                assert answer == expected
                assert harness.finished[handle].reason in ("stop", "length")
        assert harness.finished.keys() == harness.submitted.keys()
        assert harness.cache.num_available == harness.config.usable_blocks
        harness.cache.check([])
        self.check_changes()

    def check_changes(self) -> None:
        """What was told of is what is known: a block counts until no tier has it."""
        harness = self.harness
        for change in harness.cache.drain_changes():
            change_set = set(change.identities)
            known = harness.preserved
            harness.preserved = known | change_set if change.stored else known - change_set
        index = harness.cache._table.index
        assert harness.preserved == {node.identity for node in index}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("is_late", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), choice=st.sampled_from(CHOICES))
def test_every_answer_is_the_one_given_alone(
    depth: int, is_late: bool, seed: int, choice: str
) -> None:
    Crowd(seed, depth, is_late, choice).run(150)


def test_such_crowds_fetch_from_every_tier() -> None:
    """Or the test above would show little."""
    copied: Counter[Tier] = Counter()
    fetched = 0
    for seed in range(12):
        crowd = Crowd(seed, 2, True, ALWAYS)
        crowd.run(150)
        copied.update(crowd.harness.mover.num_done)
        fetched += crowd.harness.scheduler.prefetch.decisions["fetch"]
    assert copied[Tier.DRAM] > 100 and copied[Tier.DISK] > 100
    assert copied[Tier.DEVICE] > 100 and fetched > 20
