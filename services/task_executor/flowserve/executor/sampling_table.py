"""How the sequence of each row wants its tokens drawn, as columns indexed by row."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepflow.core.mixing import I64, U64, uniforms
from deepflow.core.sampling import SamplingParams

F64 = npt.NDArray[np.float64]
_SEED_MASK = (1 << 64) - 1
NOTHING_WANTED = -1


@dataclass(frozen=True, slots=True)
class RowCells:
    """Cells of a [rows, vocab] table; `entries` count the rows that were asked about."""

    entries: I64
    token_ids: I64
    values: F64


class SamplingTable:
    def __init__(self, max_sequences: int, eos_token_ids: tuple[int, ...] = ()) -> None:
        self._eos_ids = np.array(eos_token_ids, dtype=np.int64)
        self.seeds: U64 = np.zeros(max_sequences, dtype=np.uint64)
        self.choices: I64 = np.zeros(max_sequences, dtype=np.int64)
        self.prompt_lengths: I64 = np.zeros(max_sequences, dtype=np.int64)
        self.temperatures: F64 = np.zeros(max_sequences)
        self.top_ks: I64 = np.zeros(max_sequences, dtype=np.int64)
        self.top_ps: F64 = np.ones(max_sequences)
        self.min_ps: F64 = np.zeros(max_sequences)
        self.repetitions: F64 = np.ones(max_sequences)
        self.presences: F64 = np.zeros(max_sequences)
        self.frequencies: F64 = np.zeros(max_sequences)
        self.alternatives: I64 = np.full(max_sequences, NOTHING_WANTED, dtype=np.int64)
        self.prompt_alternatives: I64 = np.full(max_sequences, NOTHING_WANTED, dtype=np.int64)
        # A token drawn for an index below this must not end the answer.
        self.earliest_ends: I64 = np.zeros(max_sequences, dtype=np.int64)
        self._ends: list[I64] = [self._eos_ids] * max_sequences
        nothing = (np.zeros(0, dtype=np.int64), np.zeros(0))
        self._nothing: tuple[I64, F64] = nothing
        self._biases: list[tuple[I64, F64]] = [nothing] * max_sequences
        self._is_biased: npt.NDArray[np.bool_] = np.zeros(max_sequences, dtype=bool)

    def admit(
        self, row: int, sampling: SamplingParams, choice_index: int, prompt_length: int
    ) -> None:
        self.seeds[row] = sampling.seed & _SEED_MASK
        self.choices[row] = choice_index
        self.prompt_lengths[row] = prompt_length
        self.temperatures[row] = sampling.temperature
        self.top_ks[row] = sampling.top_k
        self.top_ps[row] = sampling.top_p
        self.min_ps[row] = sampling.min_p
        self.repetitions[row] = sampling.repetition_penalty
        self.presences[row] = sampling.presence_penalty
        self.frequencies[row] = sampling.frequency_penalty
        self.alternatives[row] = _or_nothing(sampling.logprobs)
        self.prompt_alternatives[row] = _or_nothing(sampling.prompt_logprobs)
        self.earliest_ends[row] = prompt_length + sampling.min_tokens
        self._admit_ends(row, sampling)
        self._admit_bias(row, sampling.logit_bias)

    def draws(self, rows: I64, indexes: I64) -> F64:
        """One number in [0, 1) a row, for the token that takes `indexes` in its sequence."""
        positions = indexes - self.prompt_lengths[rows]
        return uniforms(self.seeds[rows], self.choices[rows], positions)

    def penalised(self, rows: I64) -> I64:
        """Which of the entries have a penalty."""
        has_penalty = (
            (self.repetitions[rows] != 1)
            | (self.presences[rows] != 0)
            | (self.frequencies[rows] != 0)
        )
        return np.flatnonzero(has_penalty)

    def biases(self, rows: I64) -> RowCells | None:
        entries = np.flatnonzero(self._is_biased[rows])
        if not len(entries):
            return None
        found = [self._biases[rows[entry]] for entry in entries]
        return _cells(entries, [ids for ids, _ in found], np.concatenate([v for _, v in found]))

    def forbidden(self, rows: I64, indexes: I64) -> RowCells | None:
        """The tokens that would end an answer before its min_tokens."""
        is_early = indexes < self.earliest_ends[rows]
        if not is_early.any():
            return None
        entries = np.flatnonzero(is_early)
        ends = [self._ends[rows[entry]] for entry in entries]
        if not any(map(len, ends)):
            return None
        return _cells(entries, ends, np.full(sum(map(len, ends)), -np.inf))

    def _admit_ends(self, row: int, sampling: SamplingParams) -> None:
        eos = self._eos_ids[:0] if sampling.ignore_eos else self._eos_ids
        self._ends[row] = eos
        if sampling.stop_token_ids:
            self._ends[row] = np.union1d(eos, np.array(sampling.stop_token_ids, dtype=np.int64))

    def _admit_bias(self, row: int, bias: dict[int, float]) -> None:
        self._is_biased[row] = bool(bias)
        self._biases[row] = self._nothing
        if bias:
            ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
            values = np.fromiter(bias.values(), dtype=np.float64, count=len(bias))
            self._biases[row] = (ids, values)


def _cells(entries: I64, token_ids: list[I64], values: F64) -> RowCells:
    lengths = [len(ids) for ids in token_ids]
    return RowCells(entries.repeat(lengths), np.concatenate(token_ids), values)


def _or_nothing(count: int | None) -> int:
    return NOTHING_WANTED if count is None else count
