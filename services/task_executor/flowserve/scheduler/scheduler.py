"""Continuous batching: who runs in the next step, on which rows and blocks.

Decoding sequences come first, one token each; what is left of the token budget goes to prefills,
in chunks, best rank first. Planning needs token counts only (`computed`, `target`, `capacity`);
token values are first looked at by `apply`. So the next step can be planned while one or more are
under way: each `plan` is a flight, and `apply` answers the oldest. A sequence that turns out to
have ended wastes its place in the flights behind; one that was preempted comes back when the last
flight with it has landed, because only then all its tokens are known.

Why every sequence ends: the best-ranked one always advances, because it may preempt all others
and alone it fits (EngineConfig sees to that); and ranks never change.
"""

from collections import deque

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import StepOutput, Submit
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone
from services.task_executor.flowserve.scheduler.answers import require_answers
from services.task_executor.flowserve.scheduler.flight import Flight
from services.task_executor.flowserve.scheduler.landing import Landing
from services.task_executor.flowserve.scheduler.output import OutputColumns
from services.task_executor.flowserve.scheduler.policies import make_policy
from services.task_executor.flowserve.scheduler.policies.base import PrefillDemand
from services.task_executor.flowserve.scheduler.prefetch import Prefetch
from services.task_executor.flowserve.scheduler.ranked_list import RankedList
from services.task_executor.flowserve.scheduler.rows import Rows
from services.task_executor.flowserve.scheduler.sequence import Sequence
from services.task_executor.flowserve.scheduler.validation import find_fault

# Prompt tokens scored in one step: each costs logits over the whole vocabulary, and up to twenty
# alternatives in the step's report, which has to fit the ring several times over.
MAX_SCORED_TOKENS = 2048


class Scheduler:
    def __init__(self, config: EngineConfig, cache: RelationalTensorCache) -> None:
        self._config = config
        self._cache = cache
        self._policy = make_policy(config)
        self.prefetch = Prefetch(config, cache)
        self._eos_ids = frozenset(config.eos_token_ids)
        self._sequences: dict[int, Sequence] = {}  # by handle, until they end
        self._silent: set[int] = set()  # handles of those that want nothing drawn
        self._waiting = RankedList()
        self._prefilling = RankedList()
        self._decoding: list[Sequence] = []
        self._rows = Rows(config.max_sequences)
        self._arrivals = 0
        self._step = 0  # the last one planned
        self._landed = 0  # the last one answered
        self._flights: deque[Flight] = deque()
        self._blocked: tuple[Sequence, int] | None = None  # who found how few blocks available
        self._output = OutputColumns()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._flights)

    # What comes in between two steps

    def submit(self, message: Submit, *, is_complete: bool = False, now: float = 0.0) -> None:
        """Queue a sequence; one that cannot be run is answered with an error of its own.

        `is_complete`: its grammar allows nothing after the answer that it resumes.
        """
        handle, prompt_tokens = message.handle, len(message.prompt_token_ids)
        if handle in self._sequences:
            raise ValueError(f"handle {handle} is submitted while a sequence still has it")
        if fault := self.find_fault(message):
            self._output.refuse(handle, prompt_tokens, fault, invalid=True)
        elif len(self._waiting) >= self._config.max_waiting:
            full = f"the engine's queue is full ({self._config.max_waiting} sequences wait)"
            self._output.refuse(handle, prompt_tokens, full, invalid=False, busy=True)
        else:
            sequence = Sequence(message, self._arrivals, self._config, self._eos_ids, now)
            self._accept(sequence, "stop" if is_complete else sequence.ending())

    def find_fault(self, message: Submit) -> str:
        """Why `submit` would refuse it whatever else is here; empty where it would not."""
        return find_fault(message, self._config)

    def refuse(
        self,
        message: Submit,
        why: str,
        *,
        reason: str = "error",
        invalid: bool = False,
        param: str = "",
        busy: bool = False,
    ) -> None:
        """End a sequence that never came in."""
        self._output.refuse(
            message.handle,
            len(message.prompt_token_ids),
            why,
            invalid=invalid,
            reason=reason,
            param=param,
            busy=busy,
        )

    def cancel(self, handles: list[int]) -> None:
        """End these now. What has ended already, or was never here, is left alone."""
        for handle in handles:
            if sequence := self._sequences.get(handle):
                self._finish(sequence, "cancelled")
        self._forget_stopped()

    def cancel_all(self) -> None:
        self.cancel(list(self._sequences))

    # One step: plan, then apply; fail_flights where a step failed as a whole

    def plan(self, now: float = 0.0) -> StepPlan | None:
        """The next step; None where nobody is here, or all wait for a step or a copy under way."""
        self._cache.drop_expired(now)
        self.prefetch.consider(self._waiting, self.num_running, now, self._step_under_way)
        plan = StepPlan(self._step + 1)
        running = self._plan_decoding(plan)
        num_decoding = len(running)
        budget = self._prefill_budget(num_decoding, now)
        self._admit_waiting(plan, budget)
        running += self._plan_prefilling(plan, budget)
        if not plan.rows:
            is_waited_for = self._flights or self._cache.num_copying
            assert is_waited_for or not self._sequences, "sequences are here and none can run"
            return None
        plan.released_rows = self._rows.drain_released()
        self._step += 1
        self._flights.append(Flight(plan, running, num_decoding))
        return plan

    def apply(self, result: StepResult) -> None:
        """Take in what the oldest flight drew. Only now can others match the blocks it filled.

        Raises StepResultError, and changes nothing, where the answer does not fit the plan.
        """
        flight = self._flights[0]
        require_answers(flight.plan, result)
        flight.drop_stale(result)
        landing = Landing(flight, result, self._cache, self._output)
        landing.take_scores()
        for row, message in result.failures.items():
            is_their_own = row in result.blamed_rows
            self._finish(flight.owners[row], "error", message, invalid=is_their_own)
        landing.keep_chunks()
        ended = landing.take_silent() if self._silent else []
        ended += landing.take_tokens()
        completed = [flight.owners[row] for row in result.completed_rows]
        for sequence in ended:
            # A whole word of its grammar is whole at the limit, too.
            self._finish(sequence, "stop" if sequence in completed else sequence.ending())
        if ended or result.failures:
            self._forget_stopped()
        self._flights.popleft()
        flight.land()
        self._landed = flight.plan.step
        prefilled = flight.plan.num_tokens - flight.num_decoding
        self._policy.observe(flight.num_decoding, prefilled, result.seconds)
        self.prefetch.observe_step(flight, result.seconds)
        self._output.seconds = result.seconds

    def fail_flights(self, message: str, seconds: float = 0.0) -> None:
        """A step as a whole failed, and what was planned behind it is void: the sequences of all
        flights end, everybody else goes on."""
        assert self._flights, "no step is under way"
        told: list[int] = []
        while self._flights:
            flight = self._flights.popleft()
            flight.land()
            told += flight.plan.released_rows
            for sequence in self._touched_by(flight):
                if self._sequences.get(sequence.handle) is sequence:
                    self._finish(sequence, "error", message)
        self._forget_stopped()
        self._rows.tell_again(told)
        self._landed = self._step
        self._output.seconds = seconds

    def take_copies(self) -> list[BlockCopy]:
        """What the ranks' tiers are to copy from now on."""
        return self.prefetch.take_copies(self._landed)

    def finish_copies(self, done: list[CopyDone], now: float = 0.0) -> None:
        self.prefetch.finish_copies(done, now, self._step_under_way)

    def take_output(self, *, is_forced: bool = False) -> StepOutput | None:
        """Everything that happened since the last call; None where nothing did, unless forced."""
        if self._output.is_empty and not is_forced:
            return None
        output, self._output = self._output, OutputColumns()
        return output.report(
            self._landed,
            self._cache.drain_changes(),
            waiting=len(self._waiting),
            running=self.num_running,
            free_blocks=self._cache.num_available,
        )

    def check(self) -> None:
        """Assert every invariant of sequences, rows and blocks."""
        running = [*self._prefilling, *self._decoding]
        waiting = list(self._waiting)
        assert {*running, *waiting} == set(self._sequences.values())
        assert len(running) + len(waiting) == len(self._sequences)
        assert all(not sequence.is_running and not sequence.blocks for sequence in waiting)
        self._rows.check(running)
        self._cache.check([sequence.blocks for sequence in running])

    # Planning

    def _plan_decoding(self, plan: StepPlan) -> list[Sequence]:
        """One token for each that decodes, except those whose last token is under way."""
        ready = self._grow(self._ready_to_decode(), plan)
        plan.rows = [sequence.row for sequence in ready]
        plan.starts = [sequence.computed for sequence in ready]
        plan.counts = [1] * len(ready)
        plan.samples = [True] * len(ready)
        for sequence in ready:
            sequence.computed += 1
        return ready

    def _ready_to_decode(self) -> list[Sequence]:
        # Of the others the tokens under way are the last, whatever they will be.
        going_on = [s for s in self._decoding if len(s.token_ids) + s.pending < s.limit]
        if self._config.runs_ahead:
            return going_on
        # A fair part each: those of one step rest while the stages are busy with the others.
        share = -(-len(going_on) // self._config.micro_batches)
        return [sequence for sequence in going_on if not sequence.pending][:share]

    def _grow(self, ready: list[Sequence], plan: StepPlan) -> list[Sequence]:
        """Give a block to each sequence whose last one is full; where none is left, preempt."""
        full = [sequence for sequence in ready if sequence.computed == sequence.capacity]
        if not full:
            return ready
        for sequence in full:
            while sequence.is_running and not self._cache.append_block(sequence.blocks):
                if self._cache.num_copying and not self.prefetch.watch.is_stalled:
                    break  # blocks that copies hold come back without anybody's loss
                self._preempt(max([*self._prefilling, *self._decoding], key=lambda s: s.rank))
                self._forget_stopped()
            sequence.capacity = len(sequence.blocks) * self._config.block_size
        plan.new_blocks = [
            (s.row, s.blocks[-1:]) for s in full if s.is_running and s.computed < s.capacity
        ]
        return [s for s in ready if s.is_running and s.computed < s.capacity]

    def _prefill_budget(self, num_decoding: int, now: float) -> int:
        room = self._config.max_step_tokens - num_decoding
        queue = self._prefilling or self._waiting
        if not room or not queue:
            return room
        first = queue.first
        remaining = first.remaining if first.is_running else len(first.token_ids)
        demand = PrefillDemand(num_decoding, room, remaining, now - first.arrived_seconds)
        return self._policy.prefill_tokens(demand)

    def _admit_waiting(self, plan: StepPlan, budget: int) -> None:
        while self._rows.has_free and (sequence := self._next_waiting()) is not None:
            taken = sum(s.remaining for s in self._prefilling if s.rank < sequence.rank)
            if sequence.flights or taken >= budget or not self._try_admit(sequence):
                return
            plan.admitted.append(_admission(sequence))
            plan.new_blocks.append((sequence.row, list(sequence.blocks)))

    def _next_waiting(self) -> Sequence | None:
        """The first that does not wait for KV to be fetched; few do at a time."""
        ready = (it for it in self._waiting if not self.prefetch.is_fetching(it))
        return next(ready, None)

    def _try_admit(self, sequence: Sequence) -> bool:
        available = self._cache.num_available
        if self._blocked and self._blocked[0] is sequence and available <= self._blocked[1]:
            return False  # as hopeless as the last time
        matched = self._match(sequence)
        # One block to spare for each that runs, lest the next step preempts what this one admits.
        blocks = self._cache.alloc_blocks(matched, len(sequence.token_ids), spare=self.num_running)
        if blocks is None:
            self._blocked = (sequence, available)
            return False
        self._waiting.remove(sequence)
        self._prefilling.push(sequence)
        if sequence.take_row(self._rows.take(), blocks, len(matched)):
            self._output.start(sequence)
            self._cache.tally.admit(
                sequence.target, sequence.computed, self._config.block_size, sequence.sources
            )
        self._rows.hold(sequence)
        return True

    def _match(self, sequence: Sequence) -> list[int]:
        """The blocks that need not be computed; tokens that are to be scored must be."""
        if sequence.unscored:
            sequence.chain.extend(sequence.token_ids)
            return []
        return self._cache.match_by_prefix_token(sequence.chain, sequence.token_ids)

    def _plan_prefilling(self, plan: StepPlan, budget: int) -> list[Sequence]:
        scored = 0
        running: list[Sequence] = []
        for sequence in self._prefilling:
            if not budget:
                break
            count = min(sequence.remaining, budget)
            if sequence.unscored:
                count = min(count, MAX_SCORED_TOKENS - scored)
                scored += count
            # Whoever is cut is the last of the step, so that those in front of him are complete.
            budget = budget - count if count == sequence.remaining else 0
            if not count:
                break
            running.append(sequence)
            plan.rows.append(sequence.row)
            plan.starts.append(sequence.computed)
            plan.counts.append(count)
            plan.samples.append(count == sequence.remaining)
            sequence.computed += count
        while self._prefilling and not self._prefilling.first.remaining:
            self._decoding.append(self._prefilling.pop_first())
        return running

    # Coming and going

    def _accept(self, sequence: Sequence, ending: str) -> None:
        self._arrivals += 1
        sequence.rank = self._policy.rank(sequence)
        self._output.accepted.append(sequence.handle)
        if sequence.wants_no_answer:
            self._silent.add(sequence.handle)
        elif ending:  # a resumed answer that was complete already
            self._output.finish(sequence, ending)
            return
        self._sequences[sequence.handle] = sequence
        self._waiting.push(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, where its rank puts it in front; its KV is computed again."""
        self._stop(sequence)
        self._waiting.push(sequence)
        self._output.preemptions += 1

    def _finish(
        self, sequence: Sequence, reason: str, message: str = "", *, invalid: bool = False
    ) -> None:
        if sequence.is_running:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
            self.prefetch.forget(sequence)
        if sequence.flights:
            for flight in self._flights:
                flight.forget(sequence)
        del self._sequences[sequence.handle]
        self._silent.discard(sequence.handle)
        self._output.finish(sequence, reason, message, invalid=invalid)

    def _stop(self, sequence: Sequence) -> None:
        """Free row and blocks; `_forget_stopped` must follow."""
        self._cache.free(sequence.blocks, until=self._step if sequence.flights else 0)
        self._rows.release(sequence.row)
        sequence.leave_row()

    def _forget_stopped(self) -> None:
        self._decoding = [sequence for sequence in self._decoding if sequence.is_running]
        for sequence in [s for s in self._prefilling if not s.is_running]:
            self._prefilling.remove(sequence)

    @property
    def _step_under_way(self) -> int:
        """The last one planned, as a negative number where it was answered."""
        return self._step if self._flights else -self._step

    def _touched_by(self, flight: Flight) -> list[Sequence]:
        """Whose state on the executors depends on that step: also who was only let in."""
        admitted = [self._rows.holder(it.row) for it in flight.plan.admitted]
        return [*flight.owners.values(), *(it for it in admitted if it is not None)]


def _admission(sequence: Sequence) -> AdmittedSequence:
    return AdmittedSequence(
        row=sequence.row,
        token_ids=list(sequence.token_ids),
        prompt_length=sequence.prompt_length,
        choice_index=sequence.choice_index,
        sampling=sequence.sampling,
    )
