"""What a rank remembers about the sequences of its rows, as columns indexed by row."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.task_executor.flowserve.executor.matching import Matchers
from services.task_executor.flowserve.executor.sampling_table import SamplingTable
from services.task_executor.flowserve.plan import TRASH_BLOCK, AdmittedSequence, StepPlan

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


class PlanError(RuntimeError):
    """The plan contradicts what the rank knows: a bug of the master, fatal to the engine."""


@dataclass(slots=True)
class StepBatch:
    """The entries of a plan, flattened: all tokens of entry 0, then all of entry 1, ..."""

    rows: I64  # [entries]
    starts: I64  # [entries]
    counts: I64  # [entries]
    ends: I64  # [entries] context length once the step has run
    token_ids: I32  # [tokens]
    positions: I64  # [tokens] inside their sequence
    slots: I64  # [tokens] block * block_size + offset


@dataclass(slots=True)
class SampledRows:
    """The entries that draw a token, as columns in plan order."""

    entries: I64 | slice  # which entries of the batch
    rows: I64
    ends: I64  # index that the drawn token takes in its sequence


class RowTable:
    def __init__(
        self,
        max_sequences: int,
        max_tokens: int,
        block_size: int,
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        self.block_size = block_size
        self.max_tokens = max_tokens
        max_blocks = -(-max_tokens // block_size)
        # One spare column takes the token drawn at the very end of the context.
        self.token_ids: I32 = np.zeros((max_sequences, max_tokens + 1), dtype=np.int32)
        self.block_tables: I32 = np.full((max_sequences, max_blocks), TRASH_BLOCK, dtype=np.int32)
        self.lengths: I64 = np.zeros(max_sequences, dtype=np.int64)  # tokens known
        self.capacities: I64 = np.zeros(max_sequences, dtype=np.int64)  # tokens that blocks hold
        self.sampling = SamplingTable(max_sequences, eos_token_ids)

    def update(self, plan: StepPlan, matchers: Matchers) -> None:
        """Release, admit, append blocks: in this order, for a row may be freed and reused."""
        for row in plan.released_rows:
            self._release(row)
            matchers.release(row)
        for sequence in plan.admitted:
            self._admit(sequence)
            if grammar := sequence.sampling.grammar:
                answer = sequence.token_ids[sequence.prompt_length :]
                matchers.admit(sequence.row, grammar, answer)
        for row, blocks in plan.new_blocks:
            self._append_blocks(row, blocks)

    def lay_out(self, plan: StepPlan) -> StepBatch:
        rows = np.array(plan.rows, dtype=np.int64)
        starts = np.array(plan.starts, dtype=np.int64)
        counts = np.array(plan.counts, dtype=np.int64)
        ends = starts + counts
        self._check(rows, ends)
        if len(rows) == plan.num_tokens:  # one token each: nothing to flatten
            token_rows, positions = rows, starts
        else:
            firsts = counts.cumsum() - counts
            token_rows = rows.repeat(counts)
            positions = (starts - firsts).repeat(counts)
            positions += np.arange(len(positions))
        blocks = self.block_tables[token_rows, positions // self.block_size]
        slots = blocks * np.int64(self.block_size) + positions % self.block_size
        return StepBatch(
            rows, starts, counts, ends, self.token_ids[token_rows, positions], positions, slots
        )

    def sampled(self, plan: StepPlan, batch: StepBatch) -> SampledRows:
        if all(plan.samples):
            return SampledRows(slice(None), batch.rows, batch.ends)
        entries = np.flatnonzero(plan.samples)
        return SampledRows(entries, batch.rows[entries], batch.ends[entries])

    def append(self, sampled: SampledRows, token_ids: npt.NDArray[np.integer]) -> None:
        self.token_ids[sampled.rows, sampled.ends] = token_ids
        self.lengths[sampled.rows] = sampled.ends + 1

    def _check(self, rows: I64, ends: I64) -> None:
        if (ends > self.lengths[rows]).any():
            raise PlanError("the plan runs a token that its row does not know")
        if (ends > self.capacities[rows]).any():
            raise PlanError("the plan runs a token that its row has no block for")

    def _release(self, row: int) -> None:
        self.lengths[row] = 0
        self.block_tables[row, : self.capacities[row] // self.block_size] = TRASH_BLOCK
        self.capacities[row] = 0

    def _admit(self, sequence: AdmittedSequence) -> None:
        row, length = sequence.row, len(sequence.token_ids)
        if self.lengths[row]:
            raise PlanError(f"row {row} is admitted while another sequence holds it")
        if not 0 < length <= self.max_tokens:
            raise PlanError(f"row {row} is admitted with {length} tokens of {self.max_tokens}")
        self.token_ids[row, :length] = sequence.token_ids
        self.lengths[row] = length
        self.sampling.admit(row, sequence.sampling, sequence.choice_index, sequence.prompt_length)

    def _append_blocks(self, row: int, blocks: list[int]) -> None:
        held = int(self.capacities[row]) // self.block_size
        if held + len(blocks) > self.block_tables.shape[1]:
            raise PlanError(f"row {row} gets more blocks than {self.max_tokens} tokens need")
        self.block_tables[row, held : held + len(blocks)] = blocks
        self.capacities[row] += len(blocks) * self.block_size
