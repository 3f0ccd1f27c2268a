"""The cluster as the supervisor's process sees it: the manager's view and what heartbeats say."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from deepflow import clock
from deepflow.bus import Bus
from deepflow.cluster_client import ClusterClient
from deepflow.config import ServiceConfig
from deepflow.deployments import describe_deployments
from deepflow.local.liveness import HealthPort
from deepflow.local.nats_users import SUPERVISOR, password_of
from deepflow.local.stack import Stack
from deepflow.members import SCALED_KINDS, describe_member, describe_service
from deepflow.membership import HEARTBEAT_SUBJECT, kind_word
from deepflow.v1 import cluster_pb2, events_pb2

HEARTBEAT_SECONDS_MAX = 5.0


class ClusterLink(ClusterClient):
    """A client of the cluster manager and a listener on NATS; never a member."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.cluster_manager_address, stack.secrets.cluster_token)
        self._gateway_scheme = stack.options.gateway_scheme
        self._bus = Bus(_bus_config(stack), "supervisor")
        self._heard: dict[str, tuple[float, events_pb2.Heartbeat]] = {}
        # By name and kind, as last heard: silence changes nothing.
        self._health_ports: dict[tuple[str, str], HealthPort] = {}

    async def start(self) -> None:
        await self._bus.subscribe(f"{HEARTBEAT_SUBJECT}.>", events_pb2.Heartbeat, self._hear)
        self._bus.start()

    async def close(self) -> None:
        await self._bus.close()
        await super().close()

    def health_ports(self, services: Mapping[str, str]) -> dict[str, HealthPort]:
        """Where each of these processes answers, by its own heartbeats; forgets the others.

        `services` by name: who has the name and is of another kind is somebody else.
        """
        wanted = services.items()
        self._health_ports = {k: port for k, port in self._health_ports.items() if k in wanted}
        return {name: port for (name, _), port in self._health_ports.items()}

    async def describe(self) -> dict[str, Any]:
        """The view with each member's load, for people and scripts."""
        view = await self.view()
        return {
            "members": [self._member(member) for member in view.members],
            "deployments": describe_deployments(view),
            "services": [describe_service(view, name) for name in SCALED_KINDS],
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
        kind = kind_word(member.kind)
        # The gateways answer on their public port.
        scheme = self._gateway_scheme if kind == "gateway" else "http"
        port = HealthPort(member.health_address, member.pid, scheme)
        self._health_ports[(beat.id, kind)] = port

    def _member(self, member: cluster_pb2.Member) -> dict[str, Any]:
        return describe_member(member) | {"load": self._load(member)}

    def _load(self, member: cluster_pb2.Member) -> dict[str, Any] | None:
        heard_at, beat = self._heard.get(member.id, (0.0, None))
        is_fresh = clock.monotonic() - heard_at <= HEARTBEAT_SECONDS_MAX
        if beat is None or beat.incarnation != member.incarnation or not is_fresh:
            return None
        tiers = [_as_dict(tier) for tier in beat.load.kv_tiers]
        return _as_dict(beat.load) | {"kv_tiers": tiers}


def _as_dict(message: Message) -> dict[str, Any]:
    return {
        descriptor.name: getattr(message, descriptor.name)
        for descriptor in message.DESCRIPTOR.fields
    }


def _bus_config(stack: Stack) -> ServiceConfig:
    return ServiceConfig(
        nats_url=stack.nats_url,
        nats_user=SUPERVISOR.name,
        nats_password=password_of(SUPERVISOR, stack.secrets.nats_password),
    )
