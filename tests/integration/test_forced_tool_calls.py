"""A call that must come, drawn by the real engine from a model that was never taught any."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deepflow.core.tool_formats import HERMES
from deepflow.rpc import Peer
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer
from tests.integration.job_executor_rig import NOWHERE, TOKEN, Gateway, Rig, job_executor
from tests.unit.job_executor.model_folders import byte_level_tokenizer, write_folder

TEMPLATE = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}?"
SIZES = ["small", "large"]
TOOL = jobs_pb2.Tool(
    name="order",
    parameters_json=json.dumps(
        {
            "type": "object",
            "properties": {"size": {"enum": SIZES}, "is_hot": {"type": "boolean"}},
            "required": ["size", "is_hot"],
            "additionalProperties": False,
        }
    ),
)
OTHER = jobs_pb2.Tool(
    name="other", parameters_json='{"properties": {}, "additionalProperties": false}'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<tool_call>", "</tool_call>"])
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, tokenizer, chat_template=TEMPLATE)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """A whole task executor and a whole job executor; only the gateway is missing."""
    config = TaskExecutorConfig(
        id="te-real",
        cluster_token=TOKEN,
        nats_url=f"nats://{NOWHERE}",
        cluster_manager_address=NOWHERE,
        kv_store_address=NOWHERE,
    )
    server = TaskExecutorServer(config)
    await server.start()
    try:
        async with job_executor(folder) as rig:
            rig.deployment.device = "cpu"
            rig.deployment.tool_format = HERMES
            rig.deployment.facts.eos_token_ids.append(1)
            rig.deployment.facts.vocab_size = 0
            peer = Peer(server.address, TOKEN)
            stub: Any = TaskExecutorServiceStub(peer.channel)
            request = tasks_pb2.LoadModelRequest(deployment=rig.deployment)
            await peer.call(stub.LoadModel, request, timeout_seconds=60)
            await peer.close()
            executor: Any = server  # has an id and an address, as the scripted ones do
            await rig.show(executor)
            yield rig
    finally:
        await server.stop()


async def answers(rig: Rig, gateway: Gateway, handle: int, **chat: Any) -> Any:
    asked = jobs_pb2.ChatInput(tools=[OTHER, TOOL], **chat)
    asked.messages.add(role="user", content="coffee")
    sampling = types.SamplingParams(temperature=1.5, seed=handle, max_tokens=150)
    job = jobs_pb2.Job(id=f"job-{handle}", model="demo", n=4, chat=asked, sampling=sampling)
    await gateway.send(submit=jobs_pb2.SubmitJob(handle=handle, job=job))
    await gateway.until_admitted(handle)
    return [await gateway.until_finished(handle, choice) for choice in range(4)]


async def test_a_model_that_knows_nothing_calls_what_it_must(rig: Rig) -> None:
    gateway = await rig.gateway()
    try:
        named = jobs_pb2.ToolChoice(mode=jobs_pb2.TOOL_MODE_NAMED, name="order")
        ends = await answers(rig, gateway, 1, tool_choice=named)
        assert {end.reason for end in ends} == {types.FINISH_REASON_STOP}
        for choice in range(4):
            assert gateway.text(1, choice) == ""
            (call,) = gateway.calls[1, choice]
            assert call.name == "order"
            arguments = json.loads(call.arguments)
            assert arguments["size"] in SIZES and isinstance(arguments["is_hot"], bool)

        required = jobs_pb2.ToolChoice(mode=jobs_pb2.TOOL_MODE_REQUIRED)
        ends = await answers(rig, gateway, 2, tool_choice=required, single_tool_call=True)
        assert {end.reason for end in ends} == {types.FINISH_REASON_TOOL_CALLS}
        assert {len(gateway.calls[2, choice]) for choice in range(4)} == {1}
    finally:
        await gateway.close()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"$ref": "#"}, "comes to an end"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "to an end"),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused_before_anything_is_drawn(
    rig: Rig, parameters: Any, said: str
) -> None:
    gateway = await rig.gateway()
    try:
        broken = jobs_pb2.Tool(name="broken", parameters_json=json.dumps(parameters))
        named = jobs_pb2.ToolChoice(mode=jobs_pb2.TOOL_MODE_NAMED, name="broken")
        chat = jobs_pb2.ChatInput(tools=[OTHER, broken], tool_choice=named)
        chat.messages.add(role="user", content="coffee")
        job = jobs_pb2.Job(id="job-3", model="demo", chat=chat)
        await gateway.send(submit=jobs_pb2.SubmitJob(handle=3, job=job))
        error = await gateway.until_refused(3)
        assert error.code == types.ERROR_CODE_INVALID_REQUEST
        assert error.param == "tools[1].function.parameters" and said in error.message
    finally:
        await gateway.close()
