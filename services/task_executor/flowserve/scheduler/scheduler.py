"""Continuous batching: who runs in the next step, on which rows and blocks.

Decoding sequences come first, one token each; what is left of the token budget goes to prefills,
in chunks, best rank first. Planning needs token counts only (`computed`, `target`, `capacity`);
token values are first looked at by `apply`.

Why every sequence ends: the best-ranked one always advances, because it may preempt all others
and alone it fits (EngineConfig sees to that); and ranks never change.
"""

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import PromptLogprobs, StepOutput, Submit
from services.task_executor.flowserve.plan import AdmittedSequence, StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler.answers import require_answers
from services.task_executor.flowserve.scheduler.output import OutputColumns
from services.task_executor.flowserve.scheduler.policy import make_policy
from services.task_executor.flowserve.scheduler.ranked_list import RankedList
from services.task_executor.flowserve.scheduler.sequence import Sequence
from services.task_executor.flowserve.scheduler.validation import find_fault

# Prompt tokens scored in one step: each costs logits over the whole vocabulary, and up to twenty
# alternatives in the step's report, which has to fit the ring several times over.
MAX_SCORED_TOKENS = 2048


class Scheduler:
    def __init__(self, config: EngineConfig, cache: RelationalTensorCache) -> None:
        self._config = config
        self._cache = cache
        self._policy = make_policy(config.policy)
        self._eos_ids = frozenset(config.eos_token_ids)
        self._sequences: dict[int, Sequence] = {}  # by handle, until they end
        self._silent: set[int] = set()  # handles of those that want nothing drawn
        self._waiting = RankedList()
        self._prefilling = RankedList()
        self._decoding: list[Sequence] = []
        self._by_row: list[Sequence | None] = [None] * config.max_sequences
        self._free_rows = list(reversed(range(config.max_sequences)))
        self._released_rows: list[int] = []  # not yet told to the executors
        self._arrivals = 0
        self._step = 0
        self._in_flight: StepPlan | None = None
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
        return bool(self._sequences)

    # What comes in between two steps

    def submit(self, message: Submit, *, is_complete: bool = False) -> None:
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
            sequence = Sequence(message, self._arrivals, self._config, self._eos_ids)
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
        assert self._in_flight is None
        for handle in handles:
            if sequence := self._sequences.get(handle):
                self._finish(sequence, "cancelled")
        self._forget_stopped()

    def cancel_all(self) -> None:
        self.cancel(list(self._sequences))

    # One step: plan, then apply or fail_step

    def plan(self) -> StepPlan | None:
        """The next step, or None where nobody is here."""
        assert self._in_flight is None
        plan = StepPlan(self._step + 1)
        self._grow_decoding(plan)
        self._plan_decoding(plan)
        self._admit_waiting(plan)
        self._plan_prefilling(plan)
        if not plan.rows:
            assert not self._sequences, "sequences are here and none can run"
            return None
        plan.released_rows, self._released_rows = self._released_rows, []
        self._step += 1
        self._in_flight = plan
        return plan

    def apply(self, result: StepResult) -> None:
        """Take in what the step drew. Only now can others match the blocks that it filled.

        Raises StepResultError, and changes nothing, where the answer does not fit the plan.
        """
        assert self._in_flight is not None
        require_answers(self._in_flight, result)
        plan = self._take_in_flight()
        self._report_prompts(result.prompt_logprobs)
        for row, message in result.failures.items():
            self._finish(self._at_row(row), "error", message, invalid=row in result.blamed_rows)
        if False in plan.samples:
            self._preserve_chunks(plan, result)
        ended = self._without_answers(result) + self._append_tokens(result)
        for sequence in ended:
            # A whole word of its grammar is whole at the limit, too.
            is_complete = sequence.row in result.completed_rows
            self._finish(sequence, "stop" if is_complete else sequence.ending())
        if ended or result.failures:
            self._forget_stopped()
        self._output.seconds = result.seconds

    def fail_step(self, message: str, seconds: float = 0.0) -> None:
        """The step as a whole failed: its sequences end, everybody else goes on."""
        plan = self._take_in_flight()
        for row in plan.rows:
            self._finish(self._at_row(row), "error", message)
        self._forget_stopped()
        # Nobody knows how far the executors came, so they are told of every release again.
        self._released_rows = list(dict.fromkeys(plan.released_rows + self._released_rows))
        self._output.seconds = seconds

    def take_output(self) -> StepOutput | None:
        """Everything that happened since the last call; None where nothing did."""
        if self._output.is_empty:
            return None
        output, self._output = self._output, OutputColumns()
        return output.report(
            self._step,
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
        assert [s for s in self._by_row if s] == sorted(running, key=lambda s: s.row)
        rows = sorted(self._free_rows + [sequence.row for sequence in running])
        assert rows == list(range(self._config.max_sequences)), "a row is lost or used twice"
        self._cache.check([sequence.blocks for sequence in running])

    # Planning

    def _grow_decoding(self, plan: StepPlan) -> None:
        """Give a block to each sequence whose last one is full; where none is left, preempt."""
        full = [sequence for sequence in self._decoding if sequence.computed == sequence.capacity]
        for sequence in full:
            while sequence.is_running and not self._cache.append_block(sequence.blocks):
                self._preempt(max([*self._prefilling, *self._decoding], key=lambda s: s.rank))
                self._forget_stopped()
            sequence.capacity = len(sequence.blocks) * self._config.block_size
        plan.new_blocks = [(s.row, s.blocks[-1:]) for s in full if s.is_running]

    def _plan_decoding(self, plan: StepPlan) -> None:
        decoding = self._decoding
        plan.rows = [sequence.row for sequence in decoding]
        plan.starts = [sequence.computed for sequence in decoding]
        plan.counts = [1] * len(decoding)
        plan.samples = [True] * len(decoding)
        for sequence in decoding:
            sequence.computed += 1

    def _admit_waiting(self, plan: StepPlan) -> None:
        budget = self._config.max_step_tokens - len(plan.rows)
        while self._waiting and self._free_rows:
            sequence = self._waiting.first
            taken = sum(s.remaining for s in self._prefilling if s.rank < sequence.rank)
            if taken >= budget or not self._try_admit(sequence):
                return
            plan.admitted.append(_admission(sequence))
            plan.new_blocks.append((sequence.row, list(sequence.blocks)))

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
        if sequence.take_row(self._free_rows.pop(), blocks, len(matched)):
            self._output.start(sequence)
        self._by_row[sequence.row] = sequence
        return True

    def _match(self, sequence: Sequence) -> list[int]:
        """The blocks that need not be computed; tokens that are to be scored must be."""
        if sequence.unscored:
            sequence.chain.extend(sequence.token_ids)
            return []
        return self._cache.match_by_prefix_token(sequence.chain, sequence.token_ids)

    def _plan_prefilling(self, plan: StepPlan) -> None:
        budget, scored = self._config.max_step_tokens - len(plan.rows), 0
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
            plan.rows.append(sequence.row)
            plan.starts.append(sequence.computed)
            plan.counts.append(count)
            plan.samples.append(count == sequence.remaining)
            sequence.computed += count
        while self._prefilling and not self._prefilling.first.remaining:
            self._decoding.append(self._prefilling.pop_first())

    # Applying

    def _append_tokens(self, result: StepResult) -> list[Sequence]:
        """The hot loop: one turn a sequence a step. Answers those that end here."""
        ended = []
        output, by_row = self._output, self._by_row
        handles, first_indexes = output.handles, output.first_indexes
        for row, token in zip(result.rows, result.token_ids, strict=True):
            sequence = by_row[row]
            assert sequence is not None
            known = sequence.token_ids
            length = len(known)
            if length >= sequence.preserve_at:
                self._preserve(sequence, length)
            known.append(token)
            handles.append(sequence.handle)
            first_indexes.append(length - sequence.prompt_length)
            if length + 1 >= sequence.limit or token in sequence.stop_ids:
                ended.append(sequence)
        if result.tops is not None:
            output.add_tops(result.tops)
        output.token_ids += result.token_ids
        output.logprobs += result.logprobs
        for row in result.completed_rows:
            if (complete := self._at_row(row)) not in ended:
                ended.append(complete)
        return ended

    def _without_answers(self, result: StepResult) -> list[Sequence]:
        """Take out the rows that wanted their prompt computed and nothing drawn."""
        if not self._silent:
            return []
        silent = [s for row in result.rows if (s := self._at_row(row)).wants_no_answer]
        for sequence in silent:
            length = len(sequence.token_ids)
            if length >= sequence.preserve_at:
                self._preserve(sequence, length)
        if silent:
            result.drop({sequence.row for sequence in silent})
        return silent

    def _report_prompts(self, reports: list[PromptLogprobs]) -> None:
        for report in reports:
            sequence = self._at_row(report.handle)
            if new := sequence.take_scores(report):
                self._output.prompt_logprobs.append(new)

    def _preserve_chunks(self, plan: StepPlan, result: StepResult) -> None:
        """Blocks filled by chunks that drew nothing; the others are seen to with their token."""
        for index, row in enumerate(plan.rows):
            if not plan.samples[index] and row not in result.failures:
                self._preserve(self._at_row(row), plan.starts[index] + plan.counts[index])

    def _preserve(self, sequence: Sequence, computed: int) -> None:
        block_size = self._config.block_size
        first, end = sequence.preserve_at // block_size - 1, computed // block_size
        sequence.chain.extend(sequence.token_ids)
        self._cache.preserve(sequence.chain, sequence.blocks, first, end)
        sequence.preserve_at = (end + 1) * block_size

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
        del self._sequences[sequence.handle]
        self._silent.discard(sequence.handle)
        self._output.finish(sequence, reason, message, invalid=invalid)

    def _stop(self, sequence: Sequence) -> None:
        """Free row and blocks; `_forget_stopped` must follow."""
        self._cache.free(sequence.blocks)
        self._by_row[sequence.row] = None
        self._free_rows.append(sequence.row)
        self._released_rows.append(sequence.row)
        sequence.leave_row()

    def _forget_stopped(self) -> None:
        self._decoding = [sequence for sequence in self._decoding if sequence.is_running]
        for sequence in [s for s in self._prefilling if not s.is_running]:
            self._prefilling.remove(sequence)

    def _at_row(self, row: int) -> Sequence:
        sequence = self._by_row[row]
        assert sequence is not None, f"nobody runs on row {row}"
        return sequence

    def _take_in_flight(self) -> StepPlan:
        plan, self._in_flight = self._in_flight, None
        assert plan is not None, "no step is in flight"
        return plan


def _admission(sequence: Sequence) -> AdmittedSequence:
    return AdmittedSequence(
        row=sequence.row,
        token_ids=list(sequence.token_ids),
        prompt_length=sequence.prompt_length,
        choice_index=sequence.choice_index,
        sampling=sequence.sampling,
    )
