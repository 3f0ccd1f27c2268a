"""How a command finds the records: the cluster manager's view names the kv_store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepflow.access.records import AccessRecords


@asynccontextmanager
async def records_of(data_dir: Path | None, address: str | None) -> AsyncIterator["AccessRecords"]:
    """Ends the command where no stack runs; raises Unavailable where no kv_store is ready."""
    from deepflow.access.records import AccessRecords
    from deepflow.cli.cluster_access import cluster_of
    from deepflow.errors import Unavailable
    from deepflow.rpc import Peer
    from deepflow.v1 import types_pb2 as types

    async with cluster_of(data_dir, address) as cluster:
        view = await cluster.view()
        stores = [
            member.address
            for member in view.members
            if member.kind == types.MEMBER_KIND_KV_STORE
            and member.state == types.LIFECYCLE_STATE_READY
        ]
        if not stores:
            raise Unavailable("no kv_store is ready: 'deepflow status' shows what runs")
        peer = Peer(stores[0], cluster.token)
        try:
            yield AccessRecords(peer)
        finally:
            await peer.close()
