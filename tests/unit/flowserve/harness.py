"""A scheduler and a fingerprint executor, driven by hand and checked after every step."""

from collections import deque
from typing import Any

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Finished, StepOutput, Submit
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler.scheduler import Scheduler
from tests.unit.flowserve.fingerprint_executor import (
    EOS,
    VOCAB_SIZE,
    DeviceFault,
    FingerprintExecutor,
)
from tests.unit.flowserve.fingerprint_mover import FingerprintMover


def make_config(**changes: int) -> EngineConfig:
    usual = {
        "block_size": 4,
        "kv_blocks": 17,
        "max_tokens": 40,
        "vocab_size": VOCAB_SIZE,
        "max_sequences": 4,
        "max_step_tokens": 12,
    }
    fields: dict[str, Any] = usual | changes
    return EngineConfig(**fields, eos_token_ids=(EOS,))


class Harness:
    """`depth`: how many steps are under way before the oldest is answered.

    A late one runs each step only when it is answered, as late as a device could. Where the config
    has tiers, copies end when `mover` is told so.
    """

    def __init__(
        self, config: EngineConfig | None = None, depth: int = 1, *, is_late: bool = False
    ) -> None:
        self.depth = depth
        self.is_late = is_late
        self.now = 0.0
        self.copies_beside = 0  # that end before the steps under way are answered
        self.under_way: deque[StepPlan | StepResult | DeviceFault] = deque()
        self.config = config or make_config()
        self.cache = RelationalTensorCache(
            self.config.kv_blocks,
            self.config.block_size,
            dram_blocks=self.config.kv_dram_blocks,
            disk_blocks=self.config.kv_disk_blocks,
        )
        self.scheduler = Scheduler(self.config, self.cache)
        self.executor = FingerprintExecutor(self.config.kv_blocks, self.config.block_size)
        self.mover = FingerprintMover(self.executor.cells, self.config)
        self.submitted: dict[int, Submit] = {}
        self.answers: dict[int, list[int]] = {}
        self.disturbed: set[int] = set()  # a step failed while they were here
        self.finished: dict[int, Finished] = {}
        self.accepted: list[int] = []
        self.started: dict[int, int] = {}  # cached tokens by handle
        self.preemptions = 0
        self.scored: dict[int, int] = {}  # prompt tokens with a log probability, and the first
        self.tops: dict[int, list[list[int]]] = {}
        self.preserved: set[bytes] = set()  # as told by the KV changes

    def submit(
        self,
        prompt: list[int],
        max_tokens: int = 8,
        *,
        resume: list[int] | None = None,
        salt: bytes = b"",
        priority: int = 0,
        ignore_eos: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        **changes: Any,
    ) -> int:
        handle = len(self.submitted)
        sampling = SamplingParams(
            max_tokens, temperature=temperature, top_p=top_p, ignore_eos=ignore_eos, **changes
        )
        resume = resume or []
        message = Submit(handle, prompt, sampling, resume, 0, salt, priority)
        self.submitted[handle] = message
        self.answers[handle] = list(resume)
        self.scored[handle] = 1
        self.scheduler.submit(message)
        return handle

    def step(self) -> StepPlan | None:
        """One step and everything that must hold after it; answers the plan."""
        self.scheduler.finish_copies(self.mover.take_done(), self.now)
        plan = self.scheduler.plan(self.now)
        self.mover.submit(self.scheduler.take_copies())
        self.mover.finish(self.copies_beside)
        if plan is not None:
            assert plan.num_tokens <= self.config.max_step_tokens
            assert len(set(plan.rows)) == len(plan.rows)
            self._launch(plan)
        if len(self.under_way) == self.depth or plan is None:
            self.land()
        self.collect()
        self.scheduler.check()
        return plan

    def land(self) -> None:
        """Answer the oldest step under way, if there is one."""
        if not self.under_way:
            return
        result = self.under_way.popleft()
        if isinstance(result, StepPlan):
            result = self._run(result)
        if isinstance(result, DeviceFault):
            self.under_way.clear()
            self.disturbed.update(self.submitted)
            self.scheduler.fail_flights(str(result))
        else:
            self.scheduler.apply(result)

    def collect(self) -> StepOutput | None:
        output = self.scheduler.take_output()
        if output is not None:
            self.accepted += output.accepted
            self._take_started(output)
            self._take_scores(output)
            self._take_tokens(output)
            self._take_tops(output)
            self._take_changes(output)
            for finished in output.finished:
                assert finished.handle not in self.finished, "a sequence ends twice"
                self.finished[finished.handle] = finished
        return output

    def _take_started(self, output: StepOutput) -> None:
        self.preemptions += output.preemptions
        for started in output.started:
            assert started.handle not in self.started, "a sequence starts twice"
            self.started[started.handle] = started.cached_tokens
        assert self.started.keys() >= set(output.handles), "a token before its start"

    def drain(self) -> int:
        """Run until everybody has ended. The best-ranked advances in every step, so it must end."""
        steps = 0
        bound = sum(
            len(message.prompt_token_ids) + message.sampling.max_tokens
            for handle, message in self.submitted.items()
            if handle not in self.finished
        )
        bound = self.depth * (bound + 1)
        if self.cache.has_tiers:  # whoever waits for a copy may do so every time that he comes in
            bound = 3 * bound + 100
        while self.scheduler.has_work:
            self.mover.finish()
            self.step()
            steps += 1
            assert steps <= bound, "somebody starves"
        self.collect()
        return steps

    def _launch(self, plan: StepPlan) -> None:
        """What runs behind a failed step is void, whatever it does there."""
        if any(isinstance(it, DeviceFault) for it in self.under_way):
            return
        self.under_way.append(plan if self.is_late else self._run(plan))

    def _run(self, plan: StepPlan) -> StepResult | DeviceFault:
        try:
            return self.executor.execute(plan)
        except DeviceFault as fault:
            return fault

    def _take_tokens(self, output: StepOutput) -> None:
        columns = zip(output.handles, output.first_indexes, output.token_ids, strict=True)
        for handle, first_index, token in columns:
            assert first_index == len(self.answers[handle]), "a token is lost or repeated"
            self._require_scores(handle)
            self.answers[handle].append(token)
        assert output.logprobs == [-float(token) for token in output.token_ids]

    def _take_scores(self, output: StepOutput) -> None:
        for report in output.prompt_logprobs:
            message = self.submitted[report.handle]
            first, end = report.first_position, report.first_position + len(report.logprobs)
            assert first == self.scored[report.handle], "a score is lost or repeated"
            assert first < end <= len(message.prompt_token_ids)
            assert report.logprobs == [-float(t) for t in message.prompt_token_ids[first:end]]
            assert report.ranks == list(range(first, end))
            width = message.sampling.prompt_logprobs
            assert width is not None
            ids = [1000 * place + i for place in range(first, end) for i in range(width)]
            assert report.top_token_ids == ids
            assert len(report.top_logprobs) == len(ids)
            self.scored[report.handle] = end

    def _require_scores(self, handle: int) -> None:
        message = self.submitted[handle]
        if message.sampling.prompt_logprobs is not None:
            assert self.scored[handle] == len(message.prompt_token_ids), "a token came before"

    def _take_tops(self, output: StepOutput) -> None:
        if output.tops is None:
            return
        first = 0
        for position, count in zip(output.tops.positions, output.tops.counts, strict=True):
            ids = output.tops.token_ids[first : first + count]
            first += count
            handle, token = output.handles[position], output.token_ids[position]
            assert count == self.submitted[handle].sampling.logprobs and ids[0] == token
            self.tops.setdefault(handle, []).append(ids)
        assert first == len(output.tops.token_ids) == len(output.tops.logprobs)

    def _take_changes(self, output: StepOutput) -> None:
        for change in output.kv_changes:
            identities = set(change.identities)
            assert len(identities) == len(change.identities)
            if change.stored:
                assert not identities & self.preserved
                self.preserved |= identities
            else:
                assert identities <= self.preserved
                self.preserved -= identities
