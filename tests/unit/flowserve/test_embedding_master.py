"""The embedding master over an executor without a model."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.embedding.config import (
    STEP_BYTES_MAX,
    EmbeddingConfig,
    read_config,
)
from services.task_executor.flowserve.embedding.master import EmbeddingMaster
from services.task_executor.flowserve.failed_steps import MAX_FAILED_STEPS
from services.task_executor.flowserve.messages import Cancel, Finished, StepOutput, Submit
from services.task_executor.flowserve.step_clock import StepClock
from tests.unit.common.encoder_folders import encoder_spec

CONFIG = EmbeddingConfig(vocab_size=50, embedding_size=1, max_tokens=12, max_sequences=2)


class Lengths:
    """The vector of a text is its length; a text that begins with 49 has none, 48 raises."""

    def __init__(self, clock: StepClock | None = None) -> None:
        self.is_closed = False
        self._clock = clock
        self.clock_was_running = False

    def execute(self, texts: Sequence[Sequence[int]]) -> list[bytes | None]:
        self.clock_was_running = bool(self._clock and self._clock.read())
        if any(text[0] == 48 for text in texts):
            raise RuntimeError("out of luck")
        return [None if text[0] == 49 else bytes([len(text)]) for text in texts]

    def close(self) -> None:
        self.is_closed = True


def submit(handle: int, *token_ids: int) -> Submit:
    return Submit(handle, list(token_ids), SamplingParams(max_tokens=0), embed=True)


def step(master: EmbeddingMaster) -> StepOutput:
    output = master.step()
    assert output is not None
    return output


def reasons(output: StepOutput) -> dict[int, str]:
    return {it.handle: it.reason for it in output.finished}


def test_acceptance_is_told_before_the_step_and_vectors_after_it() -> None:
    memory = memoryview(bytearray(StepClock.SIZE))
    clock = StepClock(memory)
    executor = Lengths(clock)
    master = EmbeddingMaster(CONFIG, executor, step_clock=clock)
    assert not master.has_work and master.step() is None
    for handle, ids in ((1, (5, 6, 7)), (2, (5,)), (3, (9, 9))):
        master.obey(submit(handle, *ids))
    told = step(master)
    assert (told.accepted, told.waiting, told.finished) == ([1, 2, 3], 3, [])
    first = step(master)
    assert [(it.handle, it.values) for it in first.embeddings] == [(1, b"\x03"), (2, b"\x01")]
    assert first.finished == [Finished(1, "stop", 3, 0, 0), Finished(2, "stop", 1, 0, 0)]
    assert (first.waiting, first.accepted) == (1, [])
    assert executor.clock_was_running and clock.read() is None
    assert [it.handle for it in step(master).embeddings] == [3]
    assert not master.has_work


def test_a_bad_request_costs_nobody_else_anything() -> None:
    master = EmbeddingMaster(CONFIG, Lengths())
    master.obey(submit(1, 99))
    master.obey(submit(2, 4))
    told = step(master)
    assert told.accepted == [2]
    (refused,) = told.finished
    assert (refused.handle, refused.reason, refused.invalid) == (1, "error", True)
    assert [it.handle for it in step(master).embeddings] == [2]


def test_a_full_queue_is_nobodys_fault_and_worth_trying_elsewhere() -> None:
    master = EmbeddingMaster(replace(CONFIG, max_waiting=1), Lengths())
    for handle in (1, 2):
        master.obey(submit(handle, 4))
    (refused,) = step(master).finished
    assert (refused.handle, refused.busy, refused.invalid) == (2, True, False)
    assert "1 texts wait" in refused.message


def test_a_text_whose_numbers_are_not_finite_fails_alone() -> None:
    master = EmbeddingMaster(CONFIG, Lengths())
    master.obey(submit(1, 49))
    master.obey(submit(2, 4))
    step(master)
    output = step(master)
    assert reasons(output) == {1: "error", 2: "stop"}
    assert [it.handle for it in output.embeddings] == [2]
    assert not output.finished[0].invalid


def test_a_failed_step_costs_its_texts_and_failures_in_a_row_the_engine() -> None:
    master = EmbeddingMaster(CONFIG, Lengths())
    for handle in range(MAX_FAILED_STEPS - 1):
        master.obey(submit(handle, 48))
        step(master)
        output = step(master)
        assert reasons(output) == {handle: "error"}
        assert "out of luck" in output.finished[0].message
    master.obey(submit(99, 48))
    step(master)
    with pytest.raises(RuntimeError, match="out of luck"):
        master.step()


def test_a_step_that_works_forgives_those_that_failed() -> None:
    master = EmbeddingMaster(CONFIG, Lengths())
    for handle in range(3 * MAX_FAILED_STEPS):
        master.obey(submit(handle, 48 if handle % 2 else 4))
        step(master)
        assert reasons(step(master)) == {handle: "error" if handle % 2 else "stop"}


def test_cancelled_texts_end_once_and_never_run() -> None:
    executor = Lengths()
    master = EmbeddingMaster(CONFIG, executor)
    for handle in (1, 2, 3):
        master.obey(submit(handle, 4))
    master.obey(Cancel([2, 77]))
    assert reasons(step(master)) == {2: "cancelled"}
    assert [it.handle for it in step(master).embeddings] == [1, 3]
    master.obey(submit(4, 4))
    last = master.close()
    assert last is not None and reasons(last) == {4: "cancelled"}
    assert executor.is_closed


def test_settings_are_checked_and_vectors_of_a_step_fit_one_record() -> None:
    spec = encoder_spec(hidden_size=64, context_length=30)
    config = read_config({"max_sequences": 10**6, "kv_blocks": 9}, spec, dtype="float32")
    assert config.max_sequences * 64 * 4 == STEP_BYTES_MAX
    assert (config.max_tokens, config.kv_blocks) == (30, 0)
    for given, says in (
        ({"max_tokens": 31}, "context holds 30"),
        ({"max_waiting": 0}, "must be positive"),
        ({"beams": 2}, "unknown settings: beams"),
    ):
        with pytest.raises(ValueError, match=says):
            read_config(given, spec, dtype="float32")
