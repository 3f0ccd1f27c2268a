"""A stack's Redis as a person with the operator's password reaches it, and as its folder lies."""

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from redis import Redis

from deepflow.local.data_dir import DataDir
from deepflow.local.redis_users import OPERATOR
from tests.chaos.mesh import Mesh

CALL_SECONDS_MAX = 30.0


@contextlib.contextmanager
def operator(data_dir: Path) -> Iterator["Redis"]:
    client = Redis(
        port=json.loads((data_dir / "ports.json").read_text())["redis"],
        username=OPERATOR,
        password=DataDir(data_dir).read_secrets().redis_password,
        socket_timeout=CALL_SECONDS_MAX,
    )
    with client:
        yield client


class Backup:
    """The folder of the append-only file as it was at one moment."""

    def __init__(self, mesh: Mesh, data_dir: Path, folder: Path) -> None:
        self._mesh = mesh
        self._live = data_dir / "redis"
        self._copy = folder
        with self._standing_still():
            shutil.copytree(self._live, self._copy)

    def restore(self) -> None:
        """As a person does: the server ends, the files are put back, the server starts."""
        with self._standing_still() as pid:
            shutil.rmtree(self._live)
            shutil.copytree(self._copy, self._live)
            self._mesh.signal(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[int]:
        """No byte moves meanwhile."""
        pid = self._mesh.pid("redis")
        self._mesh.signal(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            self._mesh.signal(pid, signal.SIGCONT)
