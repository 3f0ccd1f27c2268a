"""Whether a gateway takes connections, by the latest word of the cluster manager."""

import asyncio
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.background import end
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import types_pb2 as types
from services.gateway import leaving
from services.gateway.leaving import Leaving, is_to_go

READY = types.LIFECYCLE_STATE_READY
DRAINING = types.LIFECYCLE_STATE_DRAINING
OWN = cluster.Member(id="gateway-1", incarnation=7)


def view(state: types.LifecycleState.ValueType, **other: Any) -> cluster.ClusterView:
    fields: dict[str, Any] = {"id": "gateway-1", "incarnation": 7, "state": state} | other
    member = cluster.Member(**fields)
    return cluster.ClusterView(members=[cluster.Member(id="gateway-0", state=DRAINING), member])


@pytest.mark.parametrize(
    ("shown", "goes"),
    [
        (view(DRAINING), True),
        (view(READY), False),
        (view(DRAINING, incarnation=6), False),  # of the process before this one
        (view(DRAINING, id="gateway-2"), False),
        (cluster.ClusterView(), False),
    ],
)
def test_only_the_word_about_this_life_counts(shown: cluster.ClusterView, goes: bool) -> None:
    assert is_to_go(shown, OWN) == goes


class FakeListener:
    """Takes its port back only after a few tries; refuses to do anything twice."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.is_open = True

    def refuse(self) -> None:
        assert self.is_open
        self.is_open = False

    async def resume(self) -> None:
        assert not self.is_open
        if self.busy:
            self.busy -= 1
            raise OSError("somebody else has the port")
        self.is_open = True


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    busy=st.integers(0, 3),
)
def test_the_last_word_holds(words: list[tuple[bool, bool]], busy: int) -> None:
    """Each word is whether it goes, and whether there is time to act before the next one."""

    async def live() -> None:
        listener = FakeListener(busy)
        ours = Leaving(cast(Any, listener), linger_seconds=0)
        running = asyncio.create_task(ours.run())
        for goes, has_time in words:
            ours.follow(view(DRAINING if goes else READY), OWN)
            for _ in range(20 if has_time else 0):
                await asyncio.sleep(0)
        for _ in range(40):
            await asyncio.sleep(0)
        assert not running.done() and listener.is_open != words[-1][0]
        await end(running)

    with mock.patch.object(leaving, "RETRY_SECONDS", 0):
        asyncio.run(live())
