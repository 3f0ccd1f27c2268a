"""How a command finds the records: the cluster manager's view names the kv_store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepflow.access.records import AccessRecords
    from deepflow.cluster_client import ClusterClient

# A stack that has just come up may answer before its kv_store is in the view.
APPEAR_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.2


@asynccontextmanager
async def records_of(data_dir: Path | None, address: str | None) -> AsyncIterator["AccessRecords"]:
    """Ends the command where no stack runs; raises Unavailable where no kv_store is ready."""
    from deepflow.access.records import AccessRecords
    from deepflow.cli.cluster_access import cluster_of
    from deepflow.rpc import Peer

    async with cluster_of(data_dir, address) as cluster:
        peer = Peer(await _ready_store(cluster), cluster.token)
        try:
            yield AccessRecords(peer)
        finally:
            await peer.close()


async def _ready_store(cluster: "ClusterClient") -> str:
    from deepflow import clock
    from deepflow.errors import Unavailable
    from deepflow.local.follow import latest_view
    from deepflow.v1 import types_pb2 as types

    deadline = clock.monotonic() + APPEAR_SECONDS_MAX
    while True:
        for member in (await latest_view(cluster)).members:
            is_store = member.kind == types.MEMBER_KIND_KV_STORE
            if is_store and member.state == types.LIFECYCLE_STATE_READY:
                return member.address
        if clock.monotonic() > deadline:
            raise Unavailable("no kv_store is ready: 'deepflow status' shows what runs")
        await asyncio.sleep(LOOK_SECONDS)
