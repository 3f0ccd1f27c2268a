"""The global prompt tree, live: NATS, kv_store, Redis, task executors as processes, job executors.

There is no cluster manager: the test shows the view, made of what the heartbeats say.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.bus import Bus
from deepflow.lifecycle import bound_to_parent
from deepflow.rpc import Peer
from deepflow.v1 import cache_pb2, cluster_pb2, events_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cache_pb2_grpc import PromptTreeServiceStub
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.job_executor.prompt_tree.index_reader import read_index, read_stored_index
from services.job_executor.prompt_tree.service import digest
from services.job_executor.server import JobExecutorServer
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.integration.job_executor_rig import (
    NOWHERE,
    SECONDS,
    TOKEN,
    Gateway,
    make_config,
    tokenizer,
)
from tests.servers import ServerProcess, free_port, nats_server, redis_server, until
from tests.unit.job_executor.model_folders import TEMPLATE, write_folder

__all__ = ["tokenizer"]

NAMES = ("te-1", "te-2")
VOCAB = 400
BLOCK_SIZE = 16
SALT = b"whose cache it is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model that an emulated device takes, with a tokenizer."""
    folder = write_folder(tmp_path_factory.mktemp("model"), tokenizer, chat_template=TEMPLATE)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Cluster:
    """Two task executors, any number of job executors, and the view between them."""

    def __init__(self, folder: Path, nats: ServerProcess, kv_store_address: str) -> None:
        self.nats = nats
        self._settings = {"nats_url": nats.url, "kv_store_address": kv_store_address}
        self._deployment = cluster_pb2.Deployment(
            name="demo",
            source=str(folder),
            device="emulated:zero",
            facts=cluster_pb2.ModelFacts(
                context_length=2048, vocab_size=VOCAB, model_revision="r1", has_chat_template=True
            ),
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
        self._beats: dict[str, events_pb2.Heartbeat] = {}
        self._bus = Bus(make_config(**self._settings), "test")
        self._version = 0
        self._next_handle = 0
        self.job_executors: list[JobExecutorServer] = []
        self._gateways: list[Gateway] = []

    async def start(self) -> None:
        self._bus.start()
        await self._bus.subscribe(
            "deepflow.heartbeat.task_executor.*", events_pb2.Heartbeat, self._note
        )
        for name in NAMES:
            self.spawn(name)
        await asyncio.gather(*(self.load(name) for name in NAMES))
        for _ in range(2):
            await self.add_job_executor()

    async def close(self) -> None:
        for gateway in self._gateways:
            await gateway.close()
        for server in self.job_executors:
            await server.stop()
        await self._bus.close()
        for name in list(self._processes):
            self.kill(name)

    async def _note(self, beat: events_pb2.Heartbeat) -> None:
        self._beats[beat.id] = beat

    def spawn(self, name: str) -> None:
        settings = self._settings | {
            "id": name,
            "cluster_token": TOKEN,
            "port": self._addresses[name].rpartition(":")[2],
            "cluster_manager_address": NOWHERE,
            "task_executor_kv_index_store_seconds": "0.1",
        }
        variables = {f"DEEPFLOW_{key.upper()}": value for key, value in settings.items()}
        self._processes[name] = subprocess.Popen(
            bound_to_parent([sys.executable, "-m", "services.task_executor"]),
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        self._beats.pop(name, None)

    async def load(self, name: str) -> None:
        """Until it holds the model and its heartbeats say so."""
        peer = Peer(self._addresses[name], TOKEN)
        stub = TaskExecutorServiceStub(peer.channel)
        request = tasks_pb2.LoadModelRequest(deployment=self._deployment, term=1)
        await peer.call(stub.LoadModel, request, timeout_seconds=60, idempotent=True)
        await peer.close()
        await until(
            lambda: (
                self._beats[name].member.state == types.LIFECYCLE_STATE_READY
                if name in self._beats
                else False
            ),
            what=f"{name} is ready",
        )

    async def unload(self, name: str) -> None:
        peer = Peer(self._addresses[name], TOKEN)
        stub = TaskExecutorServiceStub(peer.channel)
        request = tasks_pb2.UnloadModelRequest(deployment="demo", term=1)
        await peer.call(stub.UnloadModel, request, timeout_seconds=60)
        await peer.close()

    async def add_job_executor(self, **settings: Any) -> JobExecutorServer:
        server = JobExecutorServer(make_config(**{**self._settings, **settings}))
        self.job_executors.append(server)
        await server.start()
        self.show_view()
        await until(lambda: server.links.num_live == len(self._beats), what="links")
        gateway = Gateway(server.membership.member.address)
        self._gateways.append(gateway)
        await gateway.open()
        return server

    def show_view(self) -> None:
        self._version += 1
        view = cluster_pb2.ClusterView(
            term=1,
            version=self._version,
            members=[beat.member for beat in self._beats.values()],
            deployments=[self._deployment],
        )
        for server in self.job_executors:
            server.membership.adopt(view)

    async def ask(self, prompt: list[int], through: int, max_tokens: int = 8) -> tuple[int, int]:
        """(tokens that were cached, one token of the answer)."""
        self._next_handle += 1
        handle, gateway = self._next_handle, self._gateways[through]
        sampling = types.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        context = types.WorkContext(cache_salt=SALT)
        await gateway.submit(handle, prompt=prompt, sampling=sampling, context=context)
        await gateway.until_admitted(handle)
        end = await gateway.until_finished(handle)
        return end.usage.cached_tokens, gateway.token_ids[handle, 0][0]

    async def index(self, name: str) -> set[bytes]:
        return (await read_index(self._addresses[name], TOKEN)).blocks

    async def until_agreed(self, *servers: JobExecutorServer) -> int:
        """Every tree is what the task executors hold; answers how many blocks that is."""

        async def agree() -> bool:
            indexes = {name: await self.index(name) for name in self._processes}
            return all(
                set(server.prompt_tree) == set(indexes)
                and all(server.prompt_tree.blocks_of(it) == indexes[it] for it in indexes)
                for server in servers or self.job_executors
            )

        await until(agree, what="trees that are the task executors' own indexes")
        return sum([len(await self.index(name)) for name in self._processes])

    async def until_stored(self) -> int:
        """The kv_store's copies are up to date; answers how many blocks that is."""
        store = Peer(self._settings["kv_store_address"], TOKEN)

        async def is_stored() -> bool:
            for name in self._processes:
                copy = await read_stored_index(store, name)
                if copy is None or copy.blocks != await self.index(name):
                    return False
            return True

        await until(is_stored, what="copies in the kv_store")
        await store.close()
        return await self.num_blocks()

    async def described(self, server: JobExecutorServer) -> dict[str, tuple[int, bytes]]:
        """As it tells whoever holds its tree against the truth."""
        peer = Peer(server.membership.member.address, TOKEN)
        method = PromptTreeServiceStub(peer.channel).DescribePromptTree
        request = cache_pb2.DescribePromptTreeRequest()
        reply = await peer.call(method, request, timeout_seconds=SECONDS)
        await peer.close()
        return {it.task_executor_id: (it.blocks, it.digest) for it in reply.branches}

    async def num_blocks(self) -> int:
        return sum([len(await self.index(name)) for name in self._processes])


@pytest.fixture
async def cluster(folder: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(nats_server())
        redis = await stack.enter_async_context(redis_server(tmp_path))
        kv_store = KvStoreServer(
            KvStoreConfig(
                port=0,
                cluster_token=TOKEN,
                redis_url=redis.url,
                initialise=True,
                nats_url=nats.url,
                cluster_manager_address=NOWHERE,
            )
        )
        await kv_store.start()
        stack.push_async_callback(kv_store.stop)
        cluster = Cluster(folder, nats, f"127.0.0.1:{kv_store.port}")
        stack.push_async_callback(cluster.close)
        await cluster.start()
        yield cluster


def words(seed: int, count: int) -> list[int]:
    return [3 + (seed * 131 + at * 17 + at * at) % (VOCAB - 3) for at in range(count)]


async def test_conversations_follow_their_cache_and_the_dead_are_forgotten(
    cluster: Cluster,
) -> None:
    prompts = {number: words(number, 70) for number in range(4)}
    for turn in range(3):
        for number, prompt in prompts.items():
            cached, token = await cluster.ask(prompt, through=(number + turn) % 2)
            # Another job executor placed the turn before; both know where it went.
            least = 0 if turn == 0 else (len(prompt) - 41) // BLOCK_SIZE * BLOCK_SIZE
            assert cached >= least, f"turn {turn} of conversation {number}"
            prompts[number] = [*prompt, token, *words(number + turn, 40)]
            await cluster.until_agreed()
    held = {name: await cluster.index(name) for name in NAMES}
    spread = {name: len(blocks) for name, blocks in held.items()}
    for server in cluster.job_executors:
        truth = {name: (len(blocks), digest(sorted(blocks))) for name, blocks in held.items()}
        assert await cluster.described(server) == truth
    assert all(spread.values()), f"one of them got everything: {spread}"

    cluster.kill("te-1")
    cluster.show_view()
    for server in cluster.job_executors:
        assert server.prompt_tree.blocks_of("te-1") == set()
        assert len(server.prompt_tree.blocks_of("te-2")) == spread["te-2"]
    cluster.spawn("te-1")
    await cluster.load("te-1")
    cluster.show_view()
    assert await cluster.until_agreed() == spread["te-2"], "it came back with nothing"
    await until(lambda: cluster.job_executors[0].links.num_live == 2, what="both are linked")
    for number, prompt in prompts.items():
        await cluster.ask(prompt, through=number % 2)
    assert await cluster.until_agreed() > spread["te-2"]

    await cluster.unload("te-1")
    await cluster.load("te-1")
    assert await cluster.index("te-1") == set(), "another model begins with nothing"
    await cluster.until_agreed()


async def test_what_was_missed_is_read_from_the_task_executors_or_from_the_store(
    cluster: Cluster,
) -> None:
    await cluster.ask(words(1, 100), through=0)
    before = await cluster.until_agreed()
    await cluster.nats.kill()
    for number in range(2, 6):  # each of these events is lost
        await cluster.ask(words(number, 100), through=number % 2)
    assert await cluster.num_blocks() >= before + 4 * 6
    assert all(server.prompt_tree.num_blocks == before for server in cluster.job_executors)

    # A job executor that never hears an event knows what the kv_store knows.
    total = await cluster.until_stored()
    late = await cluster.add_job_executor(nats_url=f"nats://{NOWHERE}")
    await until(lambda: late.prompt_tree.num_blocks == total, what="the stored copies")
    assert (await cluster.ask(words(5, 100), through=2))[0] == 96

    await cluster.nats.start()
    assert await cluster.until_agreed(*cluster.job_executors[:2]) >= total
