"""Random histories: whatever comes in between, each answer is the one it would be alone."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.flowserve.fingerprint_executor import POISON, answer_alone
from tests.unit.flowserve.harness import Harness, make_config

# Few distinct tokens and shared openings, so that prefixes meet.
OPENINGS: tuple[list[int], ...] = ([], [1] * 4, [1] * 8, [1, 2, 3, 4] * 3, [5] * 16)
tails = st.lists(st.integers(1, 3), min_size=1, max_size=9)
prompts = st.builds(lambda opening, tail: opening + tail, st.sampled_from(OPENINGS), tails)


class EngineHistories(RuleBasedStateMachine):
    """Begin with a harness; this says what may happen to it and what must hold."""

    harness: Harness

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: set[int] = set()  # may end before their time
        self.expected: dict[int, list[int]] = {}

    @rule(
        prompt=prompts,
        max_tokens=st.integers(0, 20),
        salt=st.sampled_from([b"", b"tenant"]),
        priority=st.integers(-1, 1),
        ignore_eos=st.booleans(),
        temperature=st.sampled_from([0.0, 1.0]),
        logprobs=st.sampled_from([None, 0, 2]),
        prompt_logprobs=st.sampled_from([None, 0, 2]),
    )
    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        salt: bytes,
        priority: int,
        ignore_eos: bool,
        temperature: float,
        logprobs: int | None,
        prompt_logprobs: int | None,
    ) -> None:
        self.harness.submit(
            prompt,
            max_tokens,
            salt=salt,
            priority=priority,
            ignore_eos=ignore_eos,
            temperature=temperature,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    @rule(prompt=prompts, max_tokens=st.integers(2, 20), data=st.data())
    def resume(self, prompt: list[int], max_tokens: int, data: st.DataObject) -> None:
        max_tokens = min(max_tokens, self.harness.config.max_tokens - len(prompt))
        answer = answer_alone(prompt, max_tokens, ignore_eos=True)
        emitted = data.draw(st.integers(0, len(answer)))
        self.harness.submit(prompt, max_tokens, resume=answer[:emitted])

    @rule(prompt=prompts)
    def submit_poisoned(self, prompt: list[int]) -> None:
        self.harness.submit([*prompt, POISON])

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.harness.step()

    @precondition(lambda self: self.harness.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        handles = st.lists(st.sampled_from(sorted(self.harness.submitted)), max_size=3)
        cancelled = data.draw(handles)
        self.cancelled.update(cancelled)
        self.harness.scheduler.cancel(cancelled)
        self.harness.scheduler.check()

    @rule(moment=st.sampled_from(["before", "after"]))
    def fail_step(self, moment: str) -> None:
        self.harness.executor.fault = moment
        self.harness.step()
        self.harness.executor.fault = ""

    @invariant()
    def answers_are_those_given_alone(self) -> None:
        for handle, message in self.harness.submitted.items():
            expected = self._expect(handle)
            answer = self.harness.answers[handle]
            assert answer == expected[: len(answer)]
            finished = self.harness.finished.get(handle)
            if finished and message.prompt_token_ids[-1] == POISON:
                assert finished.reason in ("error", "cancelled")
            elif finished and handle not in self.cancelled | self.harness.disturbed:
                assert answer == expected and finished.reason in ("stop", "length")
                self._require_details(handle)
            if finished:
                assert finished.completion_tokens == len(answer)

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.drain()
        self.answers_are_those_given_alone()
        assert self.harness.finished.keys() == self.harness.submitted.keys()
        scheduler, cache = self.harness.scheduler, self.harness.cache
        assert scheduler.num_waiting == scheduler.num_running == 0
        assert cache.num_available == self.harness.config.usable_blocks
        cache.check([])

    def _require_details(self, handle: int) -> None:
        sampling = self.harness.submitted[handle].sampling
        if sampling.prompt_logprobs is not None:
            prompt = self.harness.submitted[handle].prompt_token_ids
            assert self.harness.scored[handle] == len(prompt)
        num_tops = len(self.harness.tops.get(handle, []))
        assert num_tops == (len(self.harness.answers[handle]) if sampling.logprobs else 0)

    def _expect(self, handle: int) -> list[int]:
        if handle not in self.expected:
            message = self.harness.submitted[handle]
            prompt, sampling = message.prompt_token_ids, message.sampling
            max_tokens = min(sampling.max_tokens, self.harness.config.max_tokens - len(prompt))
            self.expected[handle] = answer_alone(prompt, max_tokens, ignore_eos=sampling.ignore_eos)
        return self.expected[handle]


class Histories(EngineHistories):
    @initialize(
        kv_blocks=st.integers(11, 30),
        max_sequences=st.integers(1, 5),
        spare_tokens=st.integers(0, 12),
        depth=st.integers(1, 2),
    )
    def start(self, kv_blocks: int, max_sequences: int, spare_tokens: int, depth: int) -> None:
        config = make_config(
            kv_blocks=kv_blocks,
            max_sequences=max_sequences,
            max_step_tokens=max_sequences + spare_tokens,
        )
        self.harness = Harness(config, depth)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
