"""Two tenants on a real engine of few rows, through a real job executor."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.job_executor.server import JobExecutorServer
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer
from tests.integration.job_executor_rig import NOWHERE, TOKEN, Gateway, make_config
from tests.integration.test_prompt_tree import VOCAB, folder, tokenizer
from tests.servers import until

__all__ = ["folder", "tokenizer"]

ROWS, GREEDY_JOBS, GREEDY_TOKENS, SMALL_TOKENS = 2, 64, 150, 5
SMALL = 1000  # its handle


@pytest.fixture
async def view(folder: Path) -> AsyncIterator[cluster_pb2.ClusterView]:
    """Of one engine and what it told of itself."""
    config = TaskExecutorConfig(
        id="te-1",
        cluster_token=TOKEN,
        nats_url=f"nats://{NOWHERE}",
        cluster_manager_address=NOWHERE,
        kv_store_address=NOWHERE,
        max_sequences=ROWS,
    )
    facts = cluster_pb2.ModelFacts(context_length=2048, vocab_size=VOCAB, model_revision="r1")
    deployment = cluster_pb2.Deployment(
        name="demo", source=str(folder), device="emulated:zero", facts=facts
    )
    server = TaskExecutorServer(config)
    await server.start()
    peer = Peer(server.address, TOKEN)
    request = tasks_pb2.LoadModelRequest(deployment=deployment, term=1)
    load = TaskExecutorServiceStub(peer.channel).LoadModel
    told: tasks_pb2.LoadModelResponse = await peer.call(load, request, timeout_seconds=60)
    await peer.close()
    assert told.capabilities.max_sequences == ROWS and told.capabilities.max_step_tokens > 0
    member = cluster_pb2.Member(
        id="te-1",
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        incarnation=1,
        address=server.address,
        state=types.LIFECYCLE_STATE_READY,
        deployment="demo",
        capabilities=told.capabilities,
    )
    yield cluster_pb2.ClusterView(term=1, version=1, members=[member], deployments=[deployment])
    await server.stop()


@pytest.fixture
async def gateway(view: cluster_pb2.ClusterView) -> AsyncIterator[Gateway]:
    server = JobExecutorServer(make_config())
    await server.start()
    server.membership.adopt(view)
    await until(lambda: server.links.num_live == 1, what="a link to the task executor")
    gateway = Gateway(server.membership.member.address)
    await gateway.open()
    yield gateway
    await gateway.close()
    await server.stop()


async def ask(gateway: Gateway, handle: int, tenant: str, tokens: int) -> None:
    await gateway.submit(
        handle,
        id=f"job-{handle}",
        prompt=[5, 6, 7, handle % 300],
        context=types.WorkContext(tenant=tenant),
        sampling=types.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
    )


async def test_one_request_overtakes_a_backlog_and_nobody_loses_a_token(gateway: Gateway) -> None:
    for handle in range(GREEDY_JOBS):
        await ask(gateway, handle, "greedy", GREEDY_TOKENS)
    await until(lambda: len(gateway.queued) > GREEDY_JOBS // 2, what="a backlog")
    await ask(gateway, SMALL, "small", SMALL_TOKENS)
    await until(lambda: SMALL in gateway.queued | gateway.admitted, what="word of the small one")
    before = len(gateway.finished)
    await gateway.until_finished(SMALL)
    overtaken_by = list(gateway.finished).index((SMALL, 0)) - before
    assert overtaken_by < GREEDY_JOBS // 4, "it went ahead of the backlog"
    await until(lambda: len(gateway.finished) == GREEDY_JOBS + 1, what="the end of all")
    assert not gateway.refused
    for handle in range(GREEDY_JOBS):
        assert len(gateway.token_ids[handle, 0]) == GREEDY_TOKENS
    assert len(gateway.token_ids[SMALL, 0]) == SMALL_TOKENS
