"""Records restored from a copy that is older than what the cluster did since."""

import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.cluster_manager_rig import Cluster, running_cluster
from tests.servers import ServerProcess, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as cluster:
        yield cluster


def copy_log(source: Path, target: Path) -> None:
    """The append-only file, which a newer Redis keeps in a folder of its own."""
    for path in source.glob("appendonly*"):
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copy(path, target)


def back_up(redis: ServerProcess, source: Path, target: Path) -> None:
    """While nothing is written."""
    assert redis.process is not None
    target.mkdir()
    redis.process.send_signal(signal.SIGSTOP)
    try:
        copy_log(source, target)
    finally:
        redis.process.send_signal(signal.SIGCONT)


async def restore(cluster: Cluster, source: Path) -> None:
    await cluster.redis.kill()
    copy_log(source, cluster.folder)
    await cluster.redis.start()


@pytest.mark.parametrize("is_new_process", [False, True])
@pytest.mark.parametrize("leaders_since", [1, 3])
async def test_terms_go_on_from_what_the_members_know(
    cluster: Cluster, tmp_path: Path, leaders_since: int, is_new_process: bool
) -> None:
    """Else every later view would be older than the one that members go by, and be ignored."""
    await cluster.deploy()
    await cluster.until_ready("je-0", "te-0")
    old = tmp_path / "copy"
    back_up(cluster.redis, cluster.folder, old)
    for _ in range(leaders_since):
        await cluster.restart_manager()
        await cluster.until_ready("je-0", "te-0")
    await cluster.deploy("later")
    je = cluster.supervisor.members["je-0"]
    view = await cluster.view()
    await until(
        lambda: (je.view.term, je.view.version) >= (view.term, view.version),
        what="the members to know",
    )
    term = view.term
    if is_new_process:
        await cluster.manager.stop()
    await restore(cluster, old)
    await until(lambda: cluster.kv_store.lifecycle.is_ready, what="the records to be back")
    if is_new_process:
        await cluster.restart_manager()
    await until(lambda: je.view.term > term, what="a view that the members believe")
    # What the records say is wanted counts, not what the leader remembers beyond them.
    await until(
        lambda: [it.name for it in je.view.deployments] == ["demo"], what="the records' deployments"
    )
    await cluster.until_ready("je-0", "te-0")
