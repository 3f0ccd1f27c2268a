"""What a task executor tells while it loads, and what it says it holds, on a real CPU engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deepflow.core.sampling import SamplingParams
from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.flowserve.engine import FlowServe
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.executor.torch_executor import TorchExecutor
from services.task_executor.flowserve.messages import Load
from services.task_executor.server import TaskExecutorServer

PROMPT = [5, 9, 31, 77, 12, 60]
LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        vocab_size=128,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def reference_logprobs(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    load: Any = LlamaForCausalLM.from_pretrained
    with torch.no_grad():
        logits = load(folder, dtype=dtype).eval()(torch.tensor([PROMPT])).logits[0, -1]
    logprobs: torch.Tensor = logits.float().log_softmax(-1)
    return logprobs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_identities_name_what_the_kv_really_is(folder: Path, dtype: str) -> None:
    load = Load("m", str(folder), "cpu", "r1", {"kv_bytes": 1 << 20, "cpu_threads": 1}, dtype)
    built = build_executor(load, lambda step: contextlib.nullcontext())
    try:
        assert isinstance(built.executor, TorchExecutor)
        kept_in = {tensor.dtype for it in built.executor._kv for tensor in (it.keys, it.values)}
        assert {f"torch.{built.config.kv_dtype}"} == {str(it) for it in kept_in}
        seed = built.config.identity_seed(b"t")
        assert (seed.dtype, seed.kv_dtype) == (dtype, built.config.kv_dtype)
    finally:
        built.executor.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_what_is_computed_in_a_dtype_is_what_transformers_computes_in_it(
    folder: Path, dtype: str, tolerance: float
) -> None:
    reference = reference_logprobs(folder, getattr(torch, dtype))
    with FlowServe(folder, dtype=dtype, kv_bytes=1 << 20) as engine:
        answer = engine.generate([PROMPT], SamplingParams(max_tokens=1, temperature=0.0))[0]
        config = engine.config
    token = answer.token_ids[0]
    assert answer.logprobs[0] == pytest.approx(float(reference[token]), abs=tolerance)
    assert float(reference.max()) - float(reference[token]) <= tolerance
    size = 4 if dtype == "float32" else 2
    assert config.dtype == dtype
    block_bytes = 2 * LAYERS * KV_HEADS * HEAD_DIM * size * config.block_size
    assert config.kv_bytes == config.kv_blocks * block_bytes <= 1 << 20
    parameters = 2 * 128 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64)
    assert config.weight_bytes == parameters * size


@pytest.fixture
async def server() -> AsyncIterator[TaskExecutorServer]:
    nobody = "127.0.0.1:1"  # a task executor must not mind
    config = TaskExecutorConfig(
        id="te-test",
        cluster_token="token",
        nats_url=f"nats://{nobody}",
        cluster_manager_address=nobody,
        kv_store_address=nobody,
        kv_blocks=64,
    )
    server = TaskExecutorServer(config)
    await server.start()
    yield server
    await server.stop()


async def test_a_load_tells_its_steps_and_then_what_it_holds(
    server: TaskExecutorServer, folder: Path
) -> None:
    told: list[str] = []
    loading = types.LIFECYCLE_STATE_LOADING
    lifecycle = server.lifecycle
    lifecycle.on_change(
        lambda: told.append(lifecycle.detail) if lifecycle.state == loading else None
    )
    asked = cluster_pb2.Deployment(
        name="m", source=str(folder), device="cpu", dtype="bfloat16", max_tokens=100
    )
    async with asyncio.timeout(90):
        held = await server.models.load(asked)
    steps = [step for step in told if step]
    assert steps[:3] == ["import_torch", "read_config", "read_weights"]
    assert "allocate_kv" in steps
    assert lifecycle.word == "ready" and not lifecycle.detail
    assert (held.dtype, held.max_tokens, held.kv_blocks) == ("bfloat16", 100, 64)
    # The deployment's word on KV memory goes before the task executor's own.
    await server.models.unload("m")
    asked.kv_bytes = 1 << 20
    held = await server.models.load(asked)
    assert held.kv_bytes == 1 << 20 and held.kv_blocks != 64


async def test_what_does_not_load_says_why_and_leaves_a_task_executor_that_loads_others(
    server: TaskExecutorServer, folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    (bad / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InvalidRequest, match=r"tensor .* has shape"):
        await server.models.load(cluster_pb2.Deployment(name="bad", source=str(bad), device="cpu"))
    assert server.lifecycle.word == "blank" and "has shape" in server.lifecycle.detail
    await server.models.load(cluster_pb2.Deployment(name="m", source=str(folder), device="cpu"))
    assert server.lifecycle.word == "ready"
