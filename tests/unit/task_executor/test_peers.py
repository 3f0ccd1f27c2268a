from deepflow.errors import Unavailable
from deepflow.telemetry import Tracing
from deepflow.v1 import types_pb2 as types
from services.task_executor.flowserve.messages import Finished, StepOutput
from services.task_executor.shell.peers import Peers, PeerStream

TRACING = Tracing("test")


def output(
    handles: list[int],
    *,
    accepted: list[int] | None = None,
    finished: list[Finished] | None = None,
    step: int = 1,
) -> StepOutput:
    return StepOutput(
        step=step,
        seconds=0.0,
        accepted=accepted or [],
        handles=handles,
        first_indexes=list(range(len(handles))),
        token_ids=[100 + i for i in range(len(handles))],
        logprobs=[-0.5] * len(handles),
        finished=finished or [],
        kv_changes=[],
        waiting=0,
        running=len(handles),
        free_blocks=1,
    )


def opened(stream: PeerStream, handle: int) -> int:
    return stream.open(handle, TRACING.start("task"))


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
    import asyncio

    waiter = asyncio.create_task(peers.wait_idle())
    await asyncio.sleep(0)
    peers.deliver(output([], finished=[Finished(handle, "stop", 1, 1, 0)]))
    await asyncio.sleep(0)
    assert not waiter.done()
    stream.columns.take(0)
    peers.batch_taken()
    await asyncio.wait_for(waiter, 5)
