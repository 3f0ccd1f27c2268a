"""What a step brought, on its way into the sequences, the cache and the report."""

from services.task_executor.flowserve.plan import StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler.flight import Flight
from services.task_executor.flowserve.scheduler.output import OutputColumns
from services.task_executor.flowserve.scheduler.sequence import Sequence


class Landing:
    def __init__(
        self,
        flight: Flight,
        result: StepResult,
        cache: RelationalTensorCache,
        output: OutputColumns,
    ) -> None:
        self._flight = flight
        self._owners = flight.owners
        self._result = result
        self._cache = cache
        self._output = output

    def take_scores(self) -> None:
        for report in self._result.prompt_logprobs:
            if new := self._owners[report.handle].take_scores(report):
                self._output.prompt_logprobs.append(new)

    def keep_chunks(self) -> None:
        """Blocks filled by chunks that drew nothing; the others are seen to with their token."""
        plan = self._flight.plan
        if False not in plan.samples:
            return
        for index, sequence in enumerate(self._owners.values()):
            # Who has ended or was preempted meanwhile has given its blocks back.
            if not plan.samples[index] and sequence.is_running:
                self._keep(sequence, plan.starts[index] + plan.counts[index])

    def take_silent(self) -> list[Sequence]:
        """Take out the rows that wanted their prompt computed and nothing drawn."""
        owners, result = self._owners, self._result
        rows = [row for row in result.rows if owners[row].wants_no_answer]
        silent = [owners[row] for row in rows]
        for sequence in silent:
            if len(sequence.token_ids) >= sequence.preserve_at:
                self._keep(sequence, len(sequence.token_ids))
        if silent:
            result.drop(rows)
        return silent

    def take_tokens(self) -> list[Sequence]:
        """The hot loop: one turn a sequence a step. Answers those that end here."""
        ended = []
        owners, result, output = self._owners, self._result, self._output
        handles, first_indexes = output.handles, output.first_indexes
        for row, token in zip(result.rows, result.token_ids, strict=True):
            sequence = owners[row]
            known = sequence.token_ids
            length = len(known)
            if length >= sequence.preserve_at:
                self._keep(sequence, length)
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
            if (complete := owners[row]) not in ended:
                ended.append(complete)
        return ended

    def _keep(self, sequence: Sequence, computed: int) -> None:
        """Others can match its full blocks from now on."""
        block_size = sequence.chain.block_size
        first, end = sequence.preserve_at // block_size - 1, computed // block_size
        sequence.chain.extend(sequence.token_ids)
        self._cache.preserve(sequence.chain, sequence.blocks, first, end)
        sequence.preserve_at = (end + 1) * block_size
