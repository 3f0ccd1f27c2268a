import asyncio

import pytest

from deepflow.errors import Unavailable
from deepflow.telemetry import Tracing
from deepflow.v1 import types_pb2 as types
from services.task_executor.flowserve.messages import (
    Finished,
    PromptLogprobs,
    Started,
    StepOutput,
    TopLogprobs,
)
from services.task_executor.shell import columns
from services.task_executor.shell.peers import Peers, PeerStream
from services.task_executor.shell.running_task import Beginning, RunningTask

TRACING = Tracing("test")


def output(
    handles: list[int],
    *,
    accepted: list[int] | None = None,
    finished: list[Finished] | None = None,
    step: int = 1,
    tops: TopLogprobs | None = None,
    prompt_logprobs: list[PromptLogprobs] | None = None,
    started: list[Started] | None = None,
    seconds: float = 0.01,
    first: int = 0,
) -> StepOutput:
    return StepOutput(
        step=step,
        seconds=seconds,
        accepted=accepted or [],
        handles=handles,
        first_indexes=list(range(first, first + len(handles))),
        token_ids=[100 + i for i in range(len(handles))],
        logprobs=[-0.5] * len(handles),
        finished=finished or [],
        kv_changes=[],
        waiting=0,
        running=len(handles),
        free_blocks=1,
        tops=tops,
        prompt_logprobs=prompt_logprobs or [],
        started=started or [],
    )


def opened(stream: PeerStream, handle: int) -> int:
    return stream.open(handle, RunningTask(TRACING.start("task")))


def test_one_stream_gets_its_columns_in_order() -> None:
    peers = Peers()
    stream = peers.connect()
    engine = [opened(stream, 1), opened(stream, 2)]
    peers.deliver(output(engine, accepted=engine))
    peers.deliver(output(engine, step=2))
    batch = stream.columns.take(te_incarnation=9)
    assert list(batch.accepted_handles) == [1, 2]
    assert list(batch.handles) == [1, 2, 1, 2]
    assert list(batch.token_counts) == [1, 1, 1, 1]
    assert list(batch.token_ids) == [100, 101, 100, 101]
    assert (batch.te_incarnation, batch.engine_step) == (9, 2)
    assert not stream.columns


async def test_tokens_of_tiny_steps_wait_for_one_another_and_never_for_good() -> None:
    peers = Peers()
    stream = peers.connect()
    handle = opened(stream, 1)
    for step in (1, 2):
        peers.deliver(output([handle], step=step, seconds=0.0001, first=9 + step))
        assert not stream.wake.is_set()
    await asyncio.wait_for(stream.wake.wait(), 30)
    assert list(stream.take(0).handles) == [1, 1]
    stream.wake.clear()
    peers.deliver(output([], finished=[Finished(handle, "stop", 1, 2, 0)], seconds=0.0001))
    assert not stream.wake.is_set()
    await asyncio.wait_for(stream.wake.wait(), 30)
    assert stream.take(0).finished


async def test_a_wake_up_for_nothing_keeps_nobody_asleep() -> None:
    """What ends after it was cancelled leaves nothing to send."""
    peers = Peers()
    stream = peers.connect()
    handle = opened(stream, 1)
    stranger = Finished(stream.engine_handle(2), "length", 1, 5, 0)
    peers.deliver(output([], finished=[stranger], seconds=0.0001))
    await asyncio.wait_for(stream.wake.wait(), 30)
    assert not stream.columns
    stream.wake.clear()
    peers.deliver(output([handle], seconds=0.0001, first=10))
    await asyncio.wait_for(stream.wake.wait(), 30)
    assert list(stream.take(0).token_ids) == [100]


async def test_a_first_token_takes_along_at_once_what_waits() -> None:
    peers = Peers()
    stream = peers.connect()
    old, new = opened(stream, 1), opened(stream, 2)
    peers.deliver(output([old], seconds=0.0001, first=10))
    assert not stream.wake.is_set()
    peers.deliver(output([], accepted=[new], seconds=0.0001))
    assert stream.wake.is_set()
    stream.wake.clear()
    peers.deliver(output([new], started=[Started(new, 0)], step=2, seconds=0.0001))
    assert stream.wake.is_set()
    assert list(stream.take(0).token_ids) == [100, 100]
    stream.wake.clear()
    peers.deliver(output([new], step=3, seconds=0.0001, first=3))  # may complete a character
    assert stream.wake.is_set()


def test_the_end_of_a_task_that_drew_nothing_is_passed_on_at_once() -> None:
    peers = Peers()
    stream = peers.connect()
    refused = Finished(opened(stream, 1), "error", 1, 0, 0, "too long", invalid=True)
    peers.deliver(output([], finished=[refused], seconds=0.0))
    assert stream.wake.is_set()


def test_a_step_that_took_its_time_is_passed_on_at_once() -> None:
    peers = Peers()
    stream = peers.connect()
    peers.deliver(output([opened(stream, 1)], seconds=0.002))
    assert stream.wake.is_set()


def test_two_streams_with_equal_handles_are_told_apart() -> None:
    peers = Peers()
    first, second = peers.connect(), peers.connect()
    peers.deliver(output([opened(first, 1), opened(second, 1), opened(second, 2)]))
    assert list(first.columns.take(0).token_ids) == [100]
    batch = second.columns.take(0)
    assert (list(batch.handles), list(batch.token_ids)) == ([1, 2], [101, 102])
    assert list(batch.first_token_indexes) == [1, 2]


def test_an_end_carries_usage_and_frees_the_handle() -> None:
    peers = Peers()
    stream = peers.connect()
    handle = opened(stream, 7)
    peers.deliver(output([], finished=[Finished(handle, "length", 10, 3, 8)]))
    (finished,) = stream.columns.take(0).finished
    assert (finished.handle, finished.reason) == (7, types.FINISH_REASON_LENGTH)
    assert finished.usage.cached_tokens == 8
    assert peers.num_tasks == 0


def test_what_comes_for_a_stream_that_left_is_dropped() -> None:
    peers = Peers()
    gone, kept = peers.connect(), peers.connect()
    handles = [opened(gone, 1), opened(kept, 1)]
    assert peers.disconnect(gone) == handles[:1]
    peers.deliver(
        output(handles, accepted=handles, finished=[Finished(h, "stop", 1, 1, 0) for h in handles])
    )
    batch = kept.columns.take(0)
    assert list(batch.accepted_handles) == [1]
    assert list(batch.handles) == [1]
    assert [f.handle for f in batch.finished] == [1]


def test_a_lost_engine_fails_every_task_once() -> None:
    peers = Peers()
    stream = peers.connect()
    for handle in (1, 2):
        opened(stream, handle)
    peers.fail_all(Unavailable("the engine died"))
    peers.fail_all(Unavailable("the engine died"))
    finished = stream.columns.take(0).finished
    assert [f.handle for f in finished] == [1, 2]
    assert {f.error.code for f in finished} == {types.ERROR_CODE_UNAVAILABLE}


async def test_idle_waits_for_tasks_and_for_what_is_unsent() -> None:
    peers = Peers()
    stream = peers.connect()
    handle = opened(stream, 1)
    waiter = asyncio.create_task(peers.wait_idle())
    await asyncio.sleep(0)
    peers.deliver(output([], finished=[Finished(handle, "stop", 1, 1, 0)]))
    await asyncio.sleep(0)
    assert not waiter.done()
    stream.columns.take(0)
    peers.batch_taken()
    await asyncio.wait_for(waiter, 30)


def test_alternatives_stay_with_their_tokens_over_steps_and_streams() -> None:
    """Tokens 0 and 2 of a step asked for some; the streams' tokens come interleaved."""
    peers = Peers()
    first, second = peers.connect(), peers.connect()
    handles = [opened(first, 1), opened(second, 1), opened(second, 2), opened(first, 2)]
    tops = TopLogprobs([0, 2], [2, 1], [7, 8, 9], [-0.5, -1.0, -1.5])
    for step in (1, 2):
        peers.deliver(output(handles, step=step, tops=tops))
    peers.deliver(output(handles[:1], step=3))
    batch = first.columns.take(0)
    assert list(batch.handles) == [1, 2, 1, 2, 1]
    assert (list(batch.top_positions), list(batch.top_counts)) == ([0, 2], [2, 2])
    assert list(batch.top_token_ids) == [7, 8, 7, 8]
    batch = second.columns.take(0)
    assert list(batch.handles) == [1, 2, 1, 2]
    assert (list(batch.top_positions), list(batch.top_counts)) == ([1, 3], [1, 1])
    assert list(batch.top_token_ids) == [9, 9]
    assert list(batch.top_logprobs) == [-1.5, -1.5]


def scores(handle: int, first: int, count: int, width: int = 0) -> PromptLogprobs:
    ids = list(range(count * width))
    return PromptLogprobs(handle, first, [-0.5] * count, [3] * count, ids, [-0.25] * len(ids))


def test_scores_of_a_prompt_reach_its_stream_under_its_own_handle() -> None:
    peers = Peers()
    first, second, gone = peers.connect(), peers.connect(), peers.connect()
    handles = [opened(stream, 5) for stream in (first, second, gone)]
    peers.disconnect(gone)
    peers.deliver(output([], prompt_logprobs=[scores(handle, 1, 2, 2) for handle in handles]))
    peers.deliver(output([], prompt_logprobs=[scores(handles[1], 3, 1, 2)]))
    assert first.wake.is_set() and first.columns
    (report,) = first.columns.take(0).prompt_logprobs
    assert (report.handle, report.first_position) == (5, 1)
    assert (list(report.logprobs), list(report.ranks)) == ([-0.5, -0.5], [3, 3])
    assert (list(report.top_token_ids), len(report.top_logprobs)) == ([0, 1, 2, 3], 4)
    reports = second.columns.take(0).prompt_logprobs
    assert [report.first_position for report in reports] == [1, 3]


def test_many_scores_are_cut_into_batches_and_tokens_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "SCORES_MAX", 20)
    peers = Peers()
    stream = peers.connect()
    handle = opened(stream, 1)
    reports = [scores(handle, 1 + 9 * index, 9) for index in range(4)]
    reports.append(scores(handle, 37, 30))  # too many, and yet it must go
    peers.deliver(output([], accepted=[handle], prompt_logprobs=reports))
    peers.deliver(output([handle], finished=[Finished(handle, "stop", 67, 1, 0)]))
    batches = []
    while stream.columns:
        batches.append(stream.columns.take(0))
    firsts = [[report.first_position for report in b.prompt_logprobs] for b in batches]
    assert firsts == [[1, 10], [19, 28], [37]]
    assert [list(b.accepted_handles) for b in batches] == [[1], [], []]
    assert [len(b.token_ids) for b in batches] == [0, 0, 1]
    assert [len(b.finished) for b in batches] == [0, 0, 1]


def test_a_beginning_is_told_once_with_the_first_token() -> None:
    peers = Peers()
    begun: list[Beginning] = []
    peers.on_begun.append(begun.append)
    stream = peers.connect()
    slow, quick = opened(stream, 1), opened(stream, 2)
    peers.deliver(output([], started=[Started(slow, 32)]))  # a chunk of its prompt
    assert not begun and not stream.columns
    peers.deliver(output([quick, slow], started=[Started(quick, 0)], seconds=0.01))
    batch = stream.columns.take(0)
    told = {it.handle: it for it in batch.started}
    assert {handle: it.cached_tokens for handle, it in told.items()} == {1: 32, 2: 0}
    # One that starts and draws within one step spent that step on its prompt.
    assert told[2].prefill_milliseconds >= 10
    assert len(begun) == 2
    peers.deliver(output([quick, slow], step=2))
    assert not stream.columns.take(0).started and len(begun) == 2


def test_whoever_ends_before_its_first_token_has_no_beginning() -> None:
    peers = Peers()
    begun: list[Beginning] = []
    peers.on_begun.append(begun.append)
    ended, lost, left = peers.connect(), peers.connect(), peers.connect()
    handles = [opened(stream, 1) for stream in (ended, lost, left)]
    peers.deliver(output([], started=[Started(handle, 0) for handle in handles]))
    peers.deliver(output([], finished=[Finished(handles[0], "cancelled", 4, 0, 0)]))
    peers.disconnect(left)
    peers.fail_all(Unavailable("the engine was lost"))
    peers.deliver(output(handles, step=2))
    assert not begun
