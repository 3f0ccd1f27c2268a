"""What a task executor lets others see of its work: logs, spans, and how each task began."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deepflow.errors import DeepFlowError
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.server import TaskExecutorServer

TOKEN = "token"
TRACE = "a" * 32
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
}


class Collector(ThreadingHTTPServer):
    """As much of an OTLP/HTTP collector as an exporter needs; it has threads of its own."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        super().__init__(("127.0.0.1", 0), TakeSpans)


class TakeSpans(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The engine's lines alone are looked at."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


async def serve_one_task(folder: Path, endpoint: str) -> list[tasks_pb2.TaskTokenBatch]:
    """A task executor from its start to its end, with a failed load and one task between."""
    (folder / "config.json").write_text(json.dumps(MODEL))
    nobody = "127.0.0.1:1"
    server = TaskExecutorServer(
        TaskExecutorConfig(
            id="te-test",
            cluster_token=TOKEN,
            nats_url=f"nats://{nobody}",
            cluster_manager_address=nobody,
            kv_store_address=nobody,
            otlp_endpoint=endpoint,
        )
    )
    await server.start()
    peer = Peer(server.address, TOKEN)
    try:
        stub: Any = TaskExecutorServiceStub(peer.channel)
        with pytest.raises(DeepFlowError):
            await load(peer, stub, "broken", folder / "nothing")
        await load(peer, stub, "demo", folder)
        return await run_task(stub, peer)
    finally:
        await peer.close()
        await server.stop()


async def load(peer: Peer, stub: Any, name: str, source: Path) -> None:
    deployment = cluster_pb2.Deployment(name=name, source=str(source), device="emulated:zero")
    request = tasks_pb2.LoadModelRequest(deployment=deployment)
    await peer.call(stub.LoadModel, request, timeout_seconds=60)


async def run_task(stub: Any, peer: Peer) -> list[tasks_pb2.TaskTokenBatch]:
    stream = stub.Tasks(metadata=peer.metadata)
    await stream.write(tasks_pb2.TasksRequest(hello=tasks_pb2.TasksHello(job_executor_id="je")))
    await stream.read()
    task = tasks_pb2.Task(id="task-1", model="demo", prompt_token_ids=range(100, 140))
    task.sampling.max_tokens, task.sampling.ignore_eos = 4, True
    task.context.request_id = "req-1"
    task.context.trace.traceparent = f"00-{TRACE}-{'b' * 16}-01"
    submit = tasks_pb2.SubmitTask(handle=1, task=task)
    await stream.write(tasks_pb2.TasksRequest(submit=submit))
    batches: list[tasks_pb2.TaskTokenBatch] = []
    while not batches or not batches[-1].finished:
        batches.append((await asyncio.wait_for(stream.read(), 30)).tokens)
    assert batches[-1].finished[0].reason == types.FINISH_REASON_LENGTH
    stream.cancel()
    return batches


async def test_one_request_is_seen_from_queue_to_end(
    tmp_path: Path, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = await serve_one_task(tmp_path, f"http://127.0.0.1:{collector.server_port}")

    (with_start,) = [batch for batch in batches if batch.started]
    (started,) = with_start.started
    assert (started.handle, started.cached_tokens) == (1, 0)
    assert started.queued_milliseconds >= 0 and started.prefill_milliseconds >= 0
    assert list(with_start.first_token_indexes)[:1] == [0], "it comes with the first token"

    (span,) = [span for span in collector.spans if span.name == "te.task"]
    assert span.trace_id.hex() == TRACE
    assert [event.name for event in span.events] == ["started", "first_token"]
    attributes = {it.key: it.value for it in span.attributes}
    assert attributes["request_id"].string_value == "req-1"
    assert attributes["completion_tokens"].int_value == 4

    # gRPC's own lines, which are no JSON, are not looked at.
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    engine = [line for line in map(json.loads, said) if line["service"] == "engine"]
    (failure,) = [line for line in engine if line["level"] == "error"]
    assert (failure["id"], failure["deployment"]) == ("te-test", "broken")
    assert failure["pid"] > 0
