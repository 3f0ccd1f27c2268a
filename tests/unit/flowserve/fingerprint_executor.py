"""An executor without a model whose answers betray every lost, swapped, stale or foreign block.

The KV of a position hashes its token and the KV before it, read through the block table; the next
token hashes the KV of the whole context. So an answer is right only if every block was.
"""

from services.task_executor.flowserve.messages import PromptLogprobs, TopLogprobs
from services.task_executor.flowserve.plan import (
    TRASH_BLOCK,
    AdmittedSequence,
    StepPlan,
    StepResult,
)

VOCAB_SIZE = 50
DRAWN_SIZE = 40  # tokens from here on are never drawn
EOS = DRAWN_SIZE - 1
POISON = DRAWN_SIZE  # a sequence that ends in it fails, alone


class DeviceFault(RuntimeError):
    pass


class _Row:
    def __init__(self, sequence: AdmittedSequence) -> None:
        self.token_ids = list(sequence.token_ids)
        self.prompt_length = sequence.prompt_length
        self.sampling = sequence.sampling
        self.blocks: list[int] = []
        self.computed = 0


class FingerprintExecutor:
    def __init__(self, kv_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cells: list[list[int]] = [[0] * block_size for _ in range(kv_blocks)]
        self.rows: dict[int, _Row] = {}
        self.plans: list[StepPlan] = []
        self.fault: str = ""  # "before" or "after" the next step's work
        self.is_closed = False

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise DeviceFault("lost before the step")
        self._update(plan)
        result = StepResult(plan.step, [], [], [], seconds=0.001)
        for entry in zip(plan.rows, plan.starts, plan.counts, plan.samples, strict=True):
            self._run(*entry, result)
        if fault == "after":
            raise DeviceFault("lost after the step")
        return result

    def close(self) -> None:
        self.is_closed = True

    def _update(self, plan: StepPlan) -> None:
        for row in plan.released_rows:
            self.rows.pop(row, None)
        for sequence in plan.admitted:
            assert sequence.row not in self.rows, "a row is admitted twice"
            self.rows[sequence.row] = _Row(sequence)
        for row, blocks in plan.new_blocks:
            assert TRASH_BLOCK not in blocks
            self.rows[row].blocks += blocks

    def _run(self, row: int, start: int, count: int, samples: bool, result: StepResult) -> None:
        state = self.rows[row]
        assert state.computed in (0, start), "a position is skipped or computed twice"
        for position in range(start, start + count):
            self._write(state, position)
        state.computed = start + count
        if state.sampling.prompt_logprobs is not None:
            self._score(row, start, result)
        if not samples:
            return
        assert state.computed == len(state.token_ids)
        if state.token_ids[-1] == POISON:
            result.failures[row] = "poisoned"
            state.token_ids.append(0)  # a step planned before anyone knew must still run
            return
        token = _draw([self._read(state, position) for position in range(state.computed)])
        state.token_ids.append(token)
        result.rows.append(row)
        result.token_ids.append(token)
        result.logprobs.append(-float(token))
        self._rank(state, token, result)

    def _score(self, row: int, start: int, result: StepResult) -> None:
        """Every prompt token that follows one of this chunk; the scores tell tokens and places."""
        state = self.rows[row]
        first, end = start + 1, min(state.computed + 1, state.prompt_length)
        if first >= end:
            return
        places, width = range(first, end), state.sampling.prompt_logprobs or 0
        result.prompt_logprobs.append(
            PromptLogprobs(
                row,
                first,
                [-float(state.token_ids[place]) for place in places],
                list(places),
                [1000 * place + i for place in places for i in range(width)],
                [-float(i) for _ in places for i in range(width)],
            )
        )

    def _rank(self, state: _Row, token: int, result: StepResult) -> None:
        count = state.sampling.logprobs or 0
        if not count:
            return
        if result.tops is None:
            result.tops = TopLogprobs([], [], [], [])
        result.tops.positions.append(len(result.rows) - 1)
        result.tops.counts.append(count)
        result.tops.token_ids += [token + i for i in range(count)]
        result.tops.logprobs += [-float(i) for i in range(count)]

    def _write(self, state: _Row, position: int) -> None:
        before = self._read(state, position - 1) if position else 0
        block, offset = divmod(position, self.block_size)
        self.cells[state.blocks[block]][offset] = hash((before, state.token_ids[position]))

    def _read(self, state: _Row, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return self.cells[state.blocks[block]][offset]


def answer_alone(prompt: list[int], max_tokens: int, *, ignore_eos: bool = False) -> list[int]:
    """What a sequence answers when nobody disturbs it, without any cache."""
    cells: list[int] = []
    known = list(prompt)
    while len(known) < len(prompt) + max_tokens and known[-1] != POISON:
        for token in known[len(cells) :]:
            cells.append(hash((cells[-1] if cells else 0, token)))
        known.append(_draw(cells))
        if known[-1] == EOS and not ignore_eos:
            break
    return known[len(prompt) :]


def _draw(cells: list[int]) -> int:
    return hash(tuple(cells)) % DRAWN_SIZE
