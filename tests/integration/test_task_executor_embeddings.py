"""A whole task executor that holds an encoder: shell, engine process and vectors over real gRPC."""

import asyncio
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from deepflow.errors import InvalidRequest
from deepflow.v1 import events_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.server import TaskExecutorServer
from tests.integration.encoder_checkpoints import add_modules, reference_states, save_encoder
from tests.integration.test_task_executor import JobExecutor, folder, server
from tests.servers import until

__all__ = ["folder", "server"]

CONTEXT = 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=97,
        hidden_size=24,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=40,
        max_position_embeddings=CONTEXT,
    )
    return save_encoder(BertModel(config), tmp_path_factory.mktemp("encoder"))


class EmbeddingJobs(JobExecutor):
    async def __aenter__(self) -> "EmbeddingJobs":
        await super().__aenter__()
        return self

    async def hold(self, encoder: Path) -> None:
        await self.load(encoder, device="cpu")

    async def embed(self, handle: int, token_ids: list[int]) -> None:
        await self.submit(handle, token_ids, 0, embed=True)

    async def vectors(
        self, handles: set[int]
    ) -> tuple[dict[int, list[float]], dict[int, tasks_pb2.TaskFinished]]:
        """Until all have ended; checks that each was accepted first and its vector came in time."""
        accepted: set[int] = set()
        vectors: dict[int, list[float]] = {}
        finished: dict[int, tasks_pb2.TaskFinished] = {}
        while set(finished) < handles:
            batch = (await asyncio.wait_for(self.stream.read(), 30)).tokens
            accepted.update(batch.accepted_handles)
            assert not batch.token_ids
            for it in batch.embeddings:
                assert it.handle in accepted and it.handle not in finished
                vectors[it.handle] = np.frombuffer(it.values, "<f4").tolist()
            finished.update({end.handle: end for end in batch.finished})
        return vectors, finished


async def test_texts_become_vectors(server: TaskExecutorServer, encoder: Path) -> None:
    async with EmbeddingJobs(server) as je:
        capabilities = await je.load(encoder, device="cpu")
        assert (capabilities.kv_blocks, capabilities.kv_bytes) == (0, 0)
        assert (capabilities.max_tokens, capabilities.max_sequences) == (CONTEXT, 64)
        texts = {handle: [handle + 4] * (1 + handle % CONTEXT) for handle in range(80)}
        for handle, ids in texts.items():
            await je.embed(handle, ids)
        vectors, finished = await je.vectors(set(texts))
        assert {end.reason for end in finished.values()} == {types.FINISH_REASON_STOP}
        for handle in (0, 15, 79):
            usage = finished[handle].usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (len(texts[handle]), 0)
            wanted = reference_states(encoder, texts[handle]).mean(0)
            wanted = torch.nn.functional.normalize(wanted, dim=0)
            np.testing.assert_allclose(vectors[handle], wanted, atol=1e-5)
        load = events_pb2.Heartbeat()
        server._fill_load(load)
        assert (load.load.total_blocks, load.load.free_blocks, load.load.waiting) == (0, 0, 0)
        assert server._meter.embeddings == 80


async def test_one_bad_text_fails_alone(server: TaskExecutorServer, encoder: Path) -> None:
    async with EmbeddingJobs(server) as je:
        await je.hold(encoder)
        await je.embed(1, [5, 6])
        await je.embed(2, [97])
        await je.embed(3, [])
        await je.embed(4, [5] * (CONTEXT + 1))
        await je.submit(5, [5], 3)
        vectors, finished = await je.vectors({1, 2, 3, 4, 5})
        assert vectors.keys() == {1}
        for handle, says in ((2, "97"), (3, "empty"), (4, "17 tokens"), (5, "generates no text")):
            error = finished[handle].error
            assert error.code == types.ERROR_CODE_INVALID_REQUEST
            assert says in error.message


async def test_a_generator_makes_no_vector(server: TaskExecutorServer, folder: Path) -> None:
    async with EmbeddingJobs(server) as je:
        await je.load(folder)
        await je.embed(1, [5, 6])
        vectors, finished = await je.vectors({1})
        assert not vectors
        assert finished[1].error.code == types.ERROR_CODE_INVALID_REQUEST
        assert "makes no embeddings" in finished[1].error.message


async def test_a_lost_engine_comes_back_with_the_encoder(
    server: TaskExecutorServer, encoder: Path
) -> None:
    async with EmbeddingJobs(server) as je:
        await je.hold(encoder)
        assert server.engine.process is not None
        server.engine.process.send_signal(signal.SIGKILL)
        await until(lambda: server.lifecycle.word != "ready", what="the loss is seen")
        await until(lambda: server.lifecycle.word == "ready", what="ready again")
        await je.embed(1, [5, 6])
        vectors, _ = await je.vectors({1})
        assert vectors.keys() == {1}
        unload = tasks_pb2.UnloadModelRequest(deployment="m")
        await je.peer.call(je.stub.UnloadModel, unload, timeout_seconds=30)
        assert server.lifecycle.word == "blank"


async def test_what_cannot_be_held_is_refused_at_load(
    server: TaskExecutorServer, encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((encoder / "config.json").read_text())
    add_modules(tmp_path, {"pooling_mode_mean_tokens": True}, ("Pooling", "Dense"))
    async with EmbeddingJobs(server) as je:
        with pytest.raises(InvalidRequest, match="an embedding model needs a real device"):
            await je.load(encoder, device="emulated:zero")
        with pytest.raises(InvalidRequest, match="module 'Dense' is not supported"):
            await je.load(tmp_path, device="cpu")
        assert server.lifecycle.word == "blank"
        await je.hold(encoder)
        assert server.lifecycle.word == "ready"
