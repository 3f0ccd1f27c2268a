"""What stands around a gateway: ids and traces, the view, its port, its metrics."""

from collections.abc import AsyncIterator

import httpx
import pytest

from deepflow.bus import Bus
from deepflow.v1 import events_pb2 as events
from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer
from tests.integration.gateway_support import (
    WORDS,
    FakeJobExecutor,
    GatewayStand,
    chat,
    client,
    gateway_stand,
)
from tests.servers import nats_server, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    async with gateway_stand(FakeJobExecutor()) as stand:
        yield stand


@pytest.fixture
async def http(stand: GatewayStand) -> AsyncIterator[httpx.AsyncClient]:
    async with client(stand) as http:
        yield http


async def test_ids_and_traces_travel_to_the_job(
    stand: GatewayStand, http: httpx.AsyncClient
) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    headers = {"x-request-id": "mine-1", "traceparent": trace}
    response = await http.post(CHAT, json=chat(), headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    context = (await stand.executor.jobs.get()).job.context
    assert (context.request_id, context.trace.traceparent) == ("mine-1", trace)
    await http.post(CHAT, json=chat(), headers={"traceparent": "nonsense"})
    context = (await stand.executor.jobs.get()).job.context
    assert len(context.trace.traceparent) == len(trace) and context.request_id


async def test_the_view_comes_over_nats() -> None:
    executor = FakeJobExecutor()
    async with nats_server(user="u", password="p") as nats:
        bus_settings = {"nats_url": nats.url, "nats_user": "u", "nats_password": "p"}
        async with gateway_stand(executor, shown=False, **bus_settings) as stand:
            bus = Bus(GatewayConfig(**bus_settings), "a test")
            bus.start()
            await bus.connected.wait()
            view = stand.view()

            async def linked() -> bool:
                await bus.publish("deepflow.view", events.ViewChanged(view=view))
                return stand.gateway.links.up_count == 1

            await until(linked, what="a link from the view on the bus")
            async with client(stand) as http:
                assert "".join(WORDS)[:5] in (await http.post(CHAT, json=chat())).text
            await bus.close()


async def test_a_busy_port_is_named_with_the_way_out(stand: GatewayStand) -> None:
    port = int(stand.gateway.address.split(":")[1])
    gateway = GatewayServer(GatewayConfig(port=port))
    with pytest.raises(OSError, match=rf"port {port} .*DEEPFLOW_GATEWAY_PORT.*--port"):
        await gateway.start()
    await gateway.stop()


async def test_metrics_count_what_happened(stand: GatewayStand, http: httpx.AsyncClient) -> None:
    await http.post(CHAT, json=chat())
    await http.post(CHAT, json={"bad": 1})
    text = (await http.get("/metrics")).text
    assert 'deepflow_gateway_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'deepflow_gateway_requests_total{route="/v1/chat/completions",status="400"}' in text
    assert "deepflow_gateway_job_executor_links_up 1.0" in text
    assert "deepflow_gateway_first_token_seconds_count" in text
