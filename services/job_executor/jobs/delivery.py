"""The columns of one task executor's message, told to the choices they belong to."""

from deepflow.v1 import tasks_pb2
from services.job_executor import metrics
from services.job_executor.jobs.choice import Choice
from services.job_executor.jobs.vector import VectorTask
from services.job_executor.links.link import TaskOwner


def deliver(batch: tasks_pb2.TaskTokenBatch, tasks: dict[int, TaskOwner]) -> None:
    """Tasks that were cancelled meanwhile are in nobody's hands: their tokens are dropped."""
    for handle in batch.accepted_handles:
        if owner := tasks.get(handle):
            owner.accepted()
    for started in batch.started:
        owner = tasks.get(started.handle)
        if isinstance(owner, Choice):
            owner.story.beginning = started
    for told in batch.prompt_logprobs:
        if owner := tasks.get(told.handle):
            owner.prompt_logprobs(told)
    if batch.handles:
        _deliver_tokens(batch, tasks)
    for embedding in batch.embeddings:
        owner = tasks.get(embedding.handle)
        if isinstance(owner, VectorTask):
            owner.take_vector(embedding.values)
    for end in batch.finished:
        if owner := tasks.pop(end.handle, None):
            owner.finished(end)


def _deliver_tokens(batch: tasks_pb2.TaskTokenBatch, tasks: dict[int, TaskOwner]) -> None:
    # One conversion a column: reading items of a repeated field costs a call each.
    handles, indexes = list(batch.handles), list(batch.first_token_indexes)
    token_ids, logprobs = list(batch.token_ids), list(batch.logprobs)
    metrics.TOKENS.inc(len(token_ids))
    if len(logprobs) != len(token_ids):
        logprobs = [0.0] * len(token_ids)
    counts = list(batch.token_counts)
    if not counts.count(1) == len(handles) == len(token_ids):
        handles, indexes = _one_each(handles, indexes, counts)
    if not batch.top_positions:
        _take_all(tasks, handles, indexes, token_ids, logprobs)
        return
    start = 0
    for end, tops in sorted(_alternatives(batch).items()):
        part = slice(start, end)
        _take_all(tasks, handles[part], indexes[part], token_ids[part], logprobs[part])
        if owner := tasks.get(handles[end]):
            owner.alternatives(indexes[end], *tops)
        start = end
    part = slice(start, None)
    _take_all(tasks, handles[part], indexes[part], token_ids[part], logprobs[part])


def _take_all(
    tasks: dict[int, TaskOwner],
    handles: list[int],
    indexes: list[int],
    token_ids: list[int],
    logprobs: list[float],
) -> None:
    for handle, index, token_id, logprob in zip(handles, indexes, token_ids, logprobs, strict=True):
        if owner := tasks.get(handle):
            owner.take(index, token_id, logprob)


def _one_each(
    handles: list[int], first_indexes: list[int], counts: list[int]
) -> tuple[list[int], list[int]]:
    """Handle and index of every single token."""
    entries = list(zip(handles, first_indexes, counts, strict=True))
    return (
        [handle for handle, _, count in entries for _ in range(count)],
        [first + offset for _, first, count in entries for offset in range(count)],
    )


def _alternatives(batch: tasks_pb2.TaskTokenBatch) -> dict[int, tuple[list[int], list[float]]]:
    """By the position of their token in the token columns."""
    token_ids, logprobs = list(batch.top_token_ids), list(batch.top_logprobs)
    found: dict[int, tuple[list[int], list[float]]] = {}
    start = 0
    for position, count in zip(batch.top_positions, batch.top_counts, strict=True):
        end = start + count
        found[position] = (token_ids[start:end], logprobs[start:end])
        start = end
    if start != len(token_ids) or start != len(logprobs):
        raise ValueError("columns of alternatives differ in length")
    return found
