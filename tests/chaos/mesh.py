"""A running stack as a chaos test sees it: processes by name, their metrics, their records."""

import contextlib
import os
import signal
from typing import Any

import grpc
import httpx
import psutil

from deepflow.access.secrets import cluster_key
from deepflow.cli.status import collect
from deepflow.local.client import SupervisorClient
from deepflow.local.data_dir import DataDir
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from tests.stack import MEMBERS, Stack, wait_until

LOOK_SECONDS_MAX = 10.0
DATA_PATH = ("gateway", "job_executor", "task_executor")


class Mesh:
    """Looks cost no process each, and none but `status` needs a cluster manager."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._data = DataDir(stack.data_dir)
        self.token = self._data.read_secrets().cluster_token
        # A stack may answer before its standby is known.
        wait_until(self._knows_every_member, "everybody to be a member")
        status = self.status()
        self.gateways: list[str] = status["gateways"]
        self._kv_store: str = status["kv_store"]
        members = [row for row in status["processes"] if row.get("health_address")]
        self._health = {row["name"]: str(row["health_address"]) for row in members}
        self._addresses = {row["name"]: str(row["address"]) for row in members}

    def _knows_every_member(self) -> bool:
        rows = [row for row in self.status()["processes"] if row["service"] in MEMBERS]
        return all(row.get("health_address") for row in rows)

    def status(self) -> dict[str, Any]:
        """As `deepflow status --json`."""
        with SupervisorClient(self._data) as client:
            return collect(client)

    def rows(self) -> dict[str, dict[str, Any]]:
        """What the supervisor knows, by name."""
        with SupervisorClient(self._data) as client:
            return {row["name"]: row for row in client.ask("list")["processes"]}

    def names(self, *services: str) -> list[str]:
        return [name for name, row in self.rows().items() if row["service"] in services]

    def pid(self, name: str) -> int:
        return int(self.rows()[name]["pid"] or 0)

    def learn(self, name: str, health_address: str) -> None:
        """Somebody came later."""
        self._health[name] = health_address

    def address(self, name: str) -> str:
        """Of its gRPC or HTTP server."""
        return self._addresses[name]

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Nothing happens where it is gone already; 0, of one not there yet, would be this test."""
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def processes(self) -> dict[str, psutil.Process]:
        """Every process by its name: the supervisor, what it runs, and the engines."""
        found = {"supervisor": psutil.Process(self.stack.process.pid)}
        for name, row in self.rows().items():
            with contextlib.suppress(psutil.Error):
                found[name] = psutil.Process(int(row["pid"] or 0))
                if row["service"] == "task_executor":
                    found |= {f"{name}/engine": it for it in found[name].children()}
        found.pop("", None)
        return found

    def metrics(self, name: str) -> dict[str, float]:
        """By what stands before the value. Raises httpx.HTTPError where nobody answers."""
        url, admin = f"http://{self._health[name]}/metrics", cluster_key(self.token)
        headers = {"authorization": f"Bearer {admin}"}
        # Nothing here speaks TLS; to read the certificates takes longer than a look.
        reply = httpx.get(url, headers=headers, timeout=LOOK_SECONDS_MAX, verify=False)
        lines = reply.raise_for_status().text.splitlines()
        samples = [line.rpartition(" ") for line in lines if line.startswith("deepflow_")]
        return {sample: float(value) for sample, _, value in samples}

    def leaders(self) -> list[str]:
        """Who says so; somebody who only just starts says nothing."""
        return [name for name in self.names("cluster_manager") if self._leads(name)]

    def _leads(self, name: str) -> bool:
        try:
            return bool(self.metrics(name)["deepflow_cluster_manager_is_leader"])
        except httpx.ConnectError:
            return False

    def detail(self, name: str) -> str:
        """What its state is about, in its own words."""
        url = f"http://{self._health[name]}/health"
        with contextlib.suppress(httpx.HTTPError):
            return str(httpx.get(url, timeout=LOOK_SECONDS_MAX, verify=False).json()["detail"])
        return ""

    def records(self) -> dict[str, bytes]:
        """Everything that the kv_store keeps as a record."""
        with grpc.insecure_channel(self._kv_store) as channel:
            reply = RecordStoreServiceStub(channel).List(
                store_pb2.ListRecordsRequest(),
                metadata=(("authorization", f"Bearer {self.token}"),),
                timeout=LOOK_SECONDS_MAX,
            )
        return {record.key: record.value for record in reply.records}

    def is_well(self) -> bool:
        """Everybody runs, one leads, the records are there, and everybody hears everybody."""
        if any(row["state"] != "running" for row in self.rows().values()):
            return False
        try:
            if len(self.leaders()) != 1:
                return False
            if not self.metrics("kv-store")["deepflow_kv_store_redis_available"]:
                return False
            connected = "deepflow_process_nats_connected"
            running = [name for name in self.rows() if name in self._health]
            return all(self.metrics(name)[connected] for name in running)
        except httpx.HTTPError:
            return False

    def given_up(self) -> list[str]:
        """What any cluster manager ever said of a member of the data path that it gave up."""
        names = self.names(*DATA_PATH)
        logs = (self.stack.data_dir / "logs").glob("cluster-manager*.log")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [it for it in lines if any(f"member {name} is given up" in it for name in names)]

    def restarts(self) -> dict[str, int]:
        """Of those that nobody is to disturb."""
        rows = self.rows().items()
        return {name: row["restarts"] for name, row in rows if row["service"] in DATA_PATH}
