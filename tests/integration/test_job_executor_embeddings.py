"""Jobs of embeddings: a real job executor between a gateway client and scripted task executors."""

import math
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow import clock
from deepflow.errors import InvalidRequest, RateLimited, Unavailable, to_proto
from deepflow.v1 import cluster_pb2, jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.job_executor_rig import (
    FakeTaskExecutor,
    Gateway,
    Rig,
    folder,
    job_executor,
    tokenizer,
)
from tests.servers import until

__all__ = ["folder", "tokenizer"]

WINDOW = 3


class EmbeddingGateway(Gateway):
    """Keeps vectors, too."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.vectors: dict[tuple[int, int], jobs_pb2.JobEmbedding] = {}

    def _note(self, response: jobs_pb2.JobsResponse) -> None:
        if not response.HasField("embedding"):
            super()._note(response)
            return
        it = response.embedding
        assert it.handle in self.admitted
        assert (it.handle, it.index) not in self.vectors, "a vector was told twice"
        self.vectors[it.handle, it.index] = it

    async def embed(self, prompts: list[str | list[int]], handle: int = 1, **fields: Any) -> None:
        dimensions = fields.pop("dimensions", 0)
        wanted = jobs_pb2.EmbeddingInput(dimensions=dimensions)
        for prompt in prompts:
            if isinstance(prompt, str):
                wanted.prompts.add(text=prompt)
            else:
                wanted.prompts.add(tokens=jobs_pb2.TokenIds(ids=prompt))
        await self.submit(handle, embedding=wanted, **fields)

    async def until_vectors(self, count: int) -> None:
        await until(lambda: len(self.vectors) >= count, what=f"{count} vectors")


@pytest.fixture
async def rig(folder: Path) -> AsyncIterator[Rig]:
    async with job_executor(
        folder, embeddings_in_flight_max=WINDOW, embeddings_per_job_max=8
    ) as rig:
        facts = rig.deployment.facts
        facts.task, facts.embedding_size = cluster_pb2.MODEL_TASK_EMBED, 3
        yield rig


@pytest.fixture
async def executors(rig: Rig) -> AsyncIterator[list[FakeTaskExecutor]]:
    executors = [FakeTaskExecutor("te-1"), FakeTaskExecutor("te-2")]
    for executor in executors:
        await executor.start()
    yield executors
    for executor in executors:
        await executor.stop()


@pytest.fixture
async def executor(rig: Rig, executors: list[FakeTaskExecutor]) -> FakeTaskExecutor:
    await rig.show(executors[0])
    return executors[0]


@pytest.fixture
async def gateway(rig: Rig) -> AsyncIterator[EmbeddingGateway]:
    gateway = EmbeddingGateway(rig.server.membership.member.address)
    await gateway.open()
    yield gateway
    await gateway.close()


def numbers(it: jobs_pb2.JobEmbedding) -> list[float]:
    return array("f", it.values).tolist()


def send_vector(executor: FakeTaskExecutor, handle: int, *values: float) -> None:
    """As an engine does: the vector, and with it the end."""
    vector = tasks_pb2.TaskEmbedding(handle=handle, values=array("f", values).tobytes())
    end = tasks_pb2.TaskFinished(handle=handle, reason=types.FINISH_REASON_STOP)
    executor.send(tasks_pb2.TaskTokenBatch(embeddings=[vector], finished=[end]))


async def test_every_prompt_becomes_a_task_and_its_vector_goes_on(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig, tokenizer: Tokenizer
) -> None:
    await gateway.embed(["two words", [5, 6, 7]])
    (first, task), (second, other) = [await executor.task(number) for number in (1, 2)]
    assert task.embed and other.embed
    assert list(task.prompt_token_ids) == tokenizer.encode("two words").ids
    assert list(other.prompt_token_ids) == [5, 6, 7]
    assert (task.choice_index, other.choice_index) == (0, 1)
    assert (task.job_id, task.model, task.context.request_id) == ("job-1", "demo", "req-1")
    await gateway.until_admitted(1)
    send_vector(executor, second, 0.5, -2.0, 0.25)
    await gateway.until_vectors(1)
    send_vector(executor, first, 1.0, 2.0, 3.0)
    await gateway.until_vectors(2)
    assert numbers(gateway.vectors[1, 0]) == [1.0, 2.0, 3.0]
    assert numbers(gateway.vectors[1, 1]) == [0.5, -2.0, 0.25]
    assert [gateway.vectors[1, i].prompt_tokens for i in (0, 1)] == [len(task.prompt_token_ids), 3]
    assert rig.server.streams.num_jobs == 0
    assert not executor.cancelled and not gateway.refused


async def test_a_window_of_tasks_is_under_way_at_a_time(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.embed([[index + 1] for index in range(8)])
    await gateway.until_admitted(1)
    answered = 0
    while len(gateway.vectors) < 8:
        in_flight = len(executor.tasks) - answered
        assert in_flight <= WINDOW
        handle = list(executor.tasks)[answered]
        send_vector(executor, handle, float(answered), 0.0, 0.0)
        answered += 1
        await gateway.until_vectors(answered)
        expected = min(8, answered + WINDOW)
        await until(lambda wanted=expected: len(executor.tasks) == wanted, what="the next task")  # type: ignore[misc]
    assert [numbers(gateway.vectors[1, i])[0] for i in range(8)] == [float(i) for i in range(8)]
    assert rig.server.streams.num_jobs == 0


async def test_admission_waits_for_the_first_window(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor
) -> None:
    executor.accepts = False
    await gateway.embed([[1], [2]])
    (one, _), (two, _) = [await executor.task(number) for number in (1, 2)]
    # Having a vector is being accepted; it waits for the others to be so.
    send_vector(executor, one, 1.0, 0.0, 0.0)
    executor.send(tasks_pb2.TaskTokenBatch(accepted_handles=[two]))
    await gateway.until_vectors(1)
    send_vector(executor, two, 1.0, 0.0, 0.0)
    await gateway.until_vectors(2)


async def test_dimensions_are_the_first_numbers_at_length_one(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor
) -> None:
    await gateway.embed([[1], [2]], dimensions=2)
    for number, values in ((1, (3.0, -4.0, 12.0)), (2, (0.0, 0.0, 1.0))):
        handle, _ = await executor.task(number)
        send_vector(executor, handle, *values)
    await gateway.until_vectors(2)
    assert numbers(gateway.vectors[1, 0]) == pytest.approx([0.6, -0.8])
    assert numbers(gateway.vectors[1, 1]) == [0.0, 0.0]
    assert math.hypot(*numbers(gateway.vectors[1, 0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prompts", "fields", "param", "reason"),
    [
        ([[1], []], {}, "input[1]", "empty"),
        ([[1], [2] * 201], {}, "input[1]", "context_length_exceeded"),
        ([[2] * 201], {}, "input", "context_length_exceeded"),
        (["a b " * 5000], {}, "input", "context_length_exceeded"),
        ([[1], [420]], {}, "input[1]", "token_id_out_of_range"),
        ([[1]], {"dimensions": 4}, "dimensions", "invalid_value"),
        ([[1]] * 9, {}, "input", "invalid_value"),
        ([], {}, "input", "invalid_value"),
    ],
)
async def test_a_bad_job_is_refused_by_name(
    gateway: EmbeddingGateway,
    executor: FakeTaskExecutor,
    prompts: list[str | list[int]],
    fields: dict[str, Any],
    param: str,
    reason: str,
) -> None:
    await gateway.embed(prompts, **fields)
    error = await gateway.until_refused(1)
    assert (error.param, error.reason) == (param, reason), error
    assert error.code == types.ERROR_CODE_INVALID_REQUEST
    assert not executor.tasks


async def test_a_generator_makes_no_embeddings(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    rig.deployment.facts.task = cluster_pb2.MODEL_TASK_GENERATE
    await rig.show(executor)
    await gateway.embed([[1]])
    error = await gateway.until_refused(1)
    assert error.param == "model" and not executor.tasks


async def test_a_lost_task_executor_costs_no_vector(
    gateway: EmbeddingGateway, executors: list[FakeTaskExecutor], rig: Rig
) -> None:
    await rig.show(*executors)
    await gateway.embed([[1], [2], [3]])
    await until(lambda: sum(len(it.tasks) for it in executors) == 3, what="three tasks")
    await gateway.until_admitted(1)
    lost, kept = sorted(executors, key=lambda it: len(it.tasks), reverse=True)
    done, *unfinished = lost.tasks
    done_index = lost.tasks[done].choice_index
    send_vector(lost, done, 9.0, 0.0, 0.0)
    await gateway.until_vectors(1)
    lost.end_stream()
    await until(lambda: len(kept.tasks) == 3 - 1, what="the tasks without a vector, elsewhere")
    again = [task for task in kept.tasks.values() if task.attempt_epoch]
    assert len(again) == len(unfinished)
    for handle, task in list(kept.tasks.items()):
        send_vector(kept, handle, float(task.choice_index), 0.0, 0.0)
    await gateway.until_vectors(3)
    firsts = {index: numbers(it)[0] for (_, index), it in gateway.vectors.items()}
    assert firsts == {**{index: float(index) for index in range(3)}, done_index: 9.0}


async def test_a_full_task_executor_passes_its_task_to_another(
    gateway: EmbeddingGateway, executors: list[FakeTaskExecutor], rig: Rig
) -> None:
    await rig.show(*executors)
    for executor in executors:
        executor.accepts = False
    await gateway.embed([[1]])
    await until(lambda: any(it.tasks for it in executors), what="a task")
    full, other = sorted(executors, key=lambda it: len(it.tasks), reverse=True)
    (handle,) = full.tasks
    full.finish(handle, types.FINISH_REASON_ERROR, error=to_proto(RateLimited("full")))
    second, task = await other.task()
    assert task.attempt_epoch == 1
    send_vector(other, second, 1.0, 0.0, 0.0)
    await gateway.until_vectors(1)


@pytest.mark.parametrize("error", [InvalidRequest("no good"), Unavailable("nobody else")])
async def test_a_failed_task_ends_the_job_and_frees_the_others(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig, error: InvalidRequest
) -> None:
    await gateway.embed([[1], [2]])
    (one, _), (two, _) = [await executor.task(number) for number in (1, 2)]
    await gateway.until_admitted(1)
    executor.finish(one, types.FINISH_REASON_ERROR, error=to_proto(error))
    await until(lambda: 1 in gateway.refused, what="the end of an admitted job")
    assert gateway.refused[1].message == error.message
    await until(lambda: executor.cancelled == [two], what="the other task's cancel")
    assert rig.server.streams.num_jobs == 0


async def test_an_end_without_a_vector_and_tokens_are_faults(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor
) -> None:
    for number in (1, 2):
        await gateway.embed([[1]], handle=number)
        handle, _ = await executor.task(number)
        await gateway.until_admitted(number)
        if number == 1:
            executor.finish(handle)
        else:
            executor.emit(handle, [5])
        await until(lambda told=number: told in gateway.refused, what="the end")  # type: ignore[misc]
        assert gateway.refused[number].code == types.ERROR_CODE_INTERNAL


async def test_cancelling_frees_every_task(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.embed([[1]] * 5)
    await executor.task(WINDOW)
    await gateway.until_admitted(1)
    await gateway.send(cancel=jobs_pb2.CancelJob(handle=1))
    await until(lambda: len(executor.cancelled) == WINDOW, what="the cancels")
    await until(lambda: 1 in gateway.refused, what="the end of the job")
    assert gateway.refused[1].code == types.ERROR_CODE_CANCELLED
    assert len(executor.tasks) == WINDOW and rig.server.streams.num_jobs == 0


async def test_a_deadline_ends_the_job(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor
) -> None:
    context = types.WorkContext(deadline_unix_ms=clock.unix_ms() + 50)
    await gateway.embed([[1], [2]], context=context)
    await until(lambda: 1 in gateway.refused, what="the end of the job")
    assert gateway.refused[1].code == types.ERROR_CODE_DEADLINE_EXCEEDED
    await until(lambda: len(executor.cancelled) == len(executor.tasks), what="the cancels")


async def test_a_gateway_that_leaves_takes_its_jobs_along(
    gateway: EmbeddingGateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.embed([[1], [2]])
    await executor.task(2)
    await gateway.close()
    await until(lambda: len(executor.cancelled) == 2, what="the cancels")
    assert rig.server.streams.num_jobs == 0
