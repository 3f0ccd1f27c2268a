"""Two of everything, and one trace over all hops."""

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack, wait_until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP/HTTP and keeps (trace id, span name, parent's id, own id)."""

    spans: ClassVar[list[tuple[str, str, str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id.hex(), span.name)
                    self.spans.append((*ids, span.parent_span_id.hex(), span.span_id.hex()))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def stack(collector: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    several = ["--gateways", "2", "--job-executors", "2", "--task-executors", "2"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEEPFLOW_OTLP_ENDPOINT", collector)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        folder = tmp_path_factory.mktemp("several") / "data"
        with running_stack(folder, "--device", "emulated:zero", *several) as running:
            yield running


def complete(url: str, **headers: str) -> httpx.Response:
    body = {"model": "demo", "prompt": "hello", "max_tokens": 4, "temperature": 0}
    return httpx.post(
        f"{url}/v1/completions", json=body, headers=headers, timeout=ANSWER_SECONDS_MAX
    )


def test_every_gateway_gives_the_same_answer(stack: Stack) -> None:
    urls = stack.status()["gateways"]
    assert len(urls) == 2
    texts = {complete(url).json()["choices"][0]["text"] for url in urls for _ in range(4)}
    assert len(texts) == 1


def test_both_task_executors_get_work(stack: Stack) -> None:
    rows = [row for row in stack.members() if row["service"] == "task_executor"]
    assert len(rows) == 2

    def tokens(address: str) -> float:
        url = f"http://{address}/metrics"
        lines = httpx.get(url, timeout=ANSWER_SECONDS_MAX).text.splitlines()
        return float(
            next(x for x in lines if x.startswith("deepflow_task_executor_tokens_total")).split()[1]
        )

    def all_have_worked() -> bool:
        complete(stack.url)
        return all(tokens(row["health_address"]) > 0 for row in rows)

    wait_until(all_have_worked, "both task executors generated tokens")


def test_one_request_is_one_trace_over_all_hops(stack: Stack) -> None:
    reply = complete(stack.url, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")
    assert reply.status_code == 200

    def spans() -> dict[str, tuple[str, str]]:
        return {name: (up, own) for trace, name, up, own in Collector.spans if trace == TRACE_ID}

    wait_until(lambda: len(spans()) >= 3, "gateway, job and task spans are exported")
    found = spans()
    assert set(found) == {"gateway.request", "je.job", "te.task"}
    assert found["gateway.request"][0] == SPAN_ID
    assert found["je.job"][0] == found["gateway.request"][1]
    assert found["te.task"][0] == found["je.job"][1]
