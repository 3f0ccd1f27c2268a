"""The cluster as the supervisor's process sees it: the manager's view and what heartbeats say."""

from collections.abc import Collection
from typing import Any

from google.protobuf.message import Message

from deepflow import clock
from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from deepflow.lifecycle import state_word
from deepflow.local.cluster_client import ClusterClient
from deepflow.local.deployments import describe_deployments
from deepflow.local.liveness import HealthPort
from deepflow.local.stack import Stack
from deepflow.membership import HEARTBEAT_SUBJECT, kind_word
from deepflow.v1 import cluster_pb2, events_pb2

HEARTBEAT_SECONDS_MAX = 5.0


class ClusterLink(ClusterClient):
    """A client of the cluster manager and a listener on NATS; never a member."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.cluster_manager_address, stack.secrets.cluster_token)
        self._bus = Bus(_bus_config(stack), "supervisor")
        self._heard: dict[str, tuple[float, events_pb2.Heartbeat]] = {}
        self._health_ports: dict[str, HealthPort] = {}  # as last heard: silence changes nothing

    async def start(self) -> None:
        await self._bus.subscribe(f"{HEARTBEAT_SUBJECT}.>", events_pb2.Heartbeat, self._hear)
        self._bus.start()

    async def close(self) -> None:
        await self._bus.close()
        await super().close()

    def health_ports(self, names: Collection[str]) -> dict[str, HealthPort]:
        """Where each of these members answers, by its own heartbeats; forgets the others."""
        self._health_ports = {k: port for k, port in self._health_ports.items() if k in names}
        return dict(self._health_ports)

    async def describe(self) -> dict[str, Any]:
        """The view with each member's load, for people and scripts."""
        view = await self.view()
        return {
            "members": [self._member(member) for member in view.members],
            "deployments": describe_deployments(view),
        }

    async def _hear(self, beat: events_pb2.Heartbeat) -> None:
        now = clock.monotonic()
        self._heard = {
            member: heard
            for member, heard in self._heard.items()
            if now - heard[0] <= HEARTBEAT_SECONDS_MAX
        }
        self._heard[beat.id] = (now, beat)
        member = beat.member
        self._health_ports[beat.id] = HealthPort(member.health_address, member.pid)

    def _member(self, member: cluster_pb2.Member) -> dict[str, Any]:
        return {
            "id": member.id,
            "kind": kind_word(member.kind),
            "state": state_word(member.state),
            "detail": member.detail,
            "state_since_unix_ms": member.state_since_unix_ms,
            "pid": member.pid,
            "address": member.address,
            "health_address": member.health_address,
            "deployment": member.deployment,
            "load": self._load(member),
        }

    def _load(self, member: cluster_pb2.Member) -> dict[str, float] | None:
        heard_at, beat = self._heard.get(member.id, (0.0, None))
        is_fresh = clock.monotonic() - heard_at <= HEARTBEAT_SECONDS_MAX
        if beat is None or beat.incarnation != member.incarnation or not is_fresh:
            return None
        return {name: getattr(beat.load, name) for name in _fields(beat.load)}


def _fields(message: Message) -> list[str]:
    return [descriptor.name for descriptor in message.DESCRIPTOR.fields]


def _bus_config(stack: Stack) -> ServiceConfig:
    environment = stack.environment
    return ServiceConfig(
        nats_url=stack.nats_url,
        nats_user=environment["DEEPFLOW_NATS_USER"],
        nats_password=stack.secrets.nats_password,
    )
