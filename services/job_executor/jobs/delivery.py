"""The columns of one task executor's message, told to the choices they belong to."""

from deepflow.v1 import tasks_pb2
from services.job_executor import metrics
from services.job_executor.links.link import TaskOwner


def deliver(batch: tasks_pb2.TaskTokenBatch, tasks: dict[int, TaskOwner]) -> None:
    """Tasks that were cancelled meanwhile are in nobody's hands: their tokens are dropped."""
    for handle in batch.accepted_handles:
        if owner := tasks.get(handle):
            owner.accepted()
    if batch.handles:
        _deliver_tokens(batch, tasks)
    for end in batch.finished:
        if owner := tasks.pop(end.handle, None):
            owner.finished(end)


def _deliver_tokens(batch: tasks_pb2.TaskTokenBatch, tasks: dict[int, TaskOwner]) -> None:
    # One conversion a column: reading items of a repeated field costs a call each.
    handles, first_indexes = list(batch.handles), list(batch.first_token_indexes)
    token_ids, logprobs = list(batch.token_ids), list(batch.logprobs)
    metrics.TOKENS.inc(len(token_ids))
    if len(logprobs) != len(token_ids):
        logprobs = [0.0] * len(token_ids)
    counts = list(batch.token_counts)
    if counts.count(1) == len(handles) == len(token_ids):
        for handle, index, token_id, logprob in zip(
            handles, first_indexes, token_ids, logprobs, strict=True
        ):
            if owner := tasks.get(handle):
                owner.take(index, token_id, logprob)
        return
    position = 0
    for handle, index, count in zip(handles, first_indexes, counts, strict=True):
        for offset in range(count):
            if owner := tasks.get(handle):
                owner.take(index + offset, token_ids[position], logprobs[position])
            position += 1
