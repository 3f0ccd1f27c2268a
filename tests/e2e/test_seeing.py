"""What an operator sees of a running stack: requests' stories, metrics, logs, the doctor."""

import json
from typing import Any

import httpx
import openai

from tests.stack import Stack, wait_until

# What they write is their own.
FOREIGN_LOGS = ("nats", "redis")


def ended_story(http: httpx.Client, request_id: str) -> dict[str, Any]:
    """The client has its answer a moment before the job executor writes down the end."""
    told: dict[str, Any] = {}

    def has_ended() -> bool:
        told.update(http.get(f"/v1/requests/{request_id}").raise_for_status().json())
        return bool(told["outcome"] != "running")

    wait_until(has_ended, "the end of the story")
    return told


def test_a_request_tells_its_story(
    stack: Stack, client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    prompt = "Tell me, who keeps the log of all tokens? " * 4
    for request_id in ("story-1", "story-2"):
        answer = client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=12,
            n=2,
            extra_headers={"x-request-id": request_id},
            extra_body={"ignore_eos": True},
        )
    told = ended_story(http, "story-2")
    members = {row["name"] for row in stack.members()}
    assert {told["route"]["gateway"], told["route"]["job_executor"]} <= members
    assert (told["model"], told["kind"], told["outcome"]) == (model, "completion", "ok")
    assert [choice["index"] for choice in told["choices"]] == [0, 1]
    for choice in told["choices"]:
        assert choice["task_executor"] in members
        assert choice["completion_tokens"] == 12 and choice["finish_reason"] == "length"
        assert choice["queued_ms"] >= 0 and choice["prefill_ms"] > 0
        assert choice["first_token_ms"] <= choice["finished_ms"] <= told["total_ms"]
        assert choice["cached_tokens"] > 0, "the first request left its prompt in the cache"
    assert answer.usage is not None and told["prompt_tokens"] == answer.usage.prompt_tokens
    unknown = http.get("/v1/requests/never-asked")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")


def test_a_refused_request_tells_why(client: openai.OpenAI, http: httpx.Client, model: str) -> None:
    refused = http.post(
        "/v1/completions",
        json={"model": model, "prompt": "x " * 9000, "max_tokens": 4},
        headers={"x-request-id": "story-refused"},
    )
    assert refused.status_code == 400
    told = ended_story(http, "story-refused")
    assert told["outcome"] == told["error"]["code"] == refused.json()["error"]["code"]


def test_the_gateway_times_answers_by_model(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": 4, "ignore_eos": True}
    http.post("/v1/completions", json=body).raise_for_status()
    http.post("/v1/completions", json=body | {"model": "nobody"})
    text = http.get("/metrics").text
    for what in ("first_token", "output_token", "answer"):
        assert f'deepflow_gateway_{what}_seconds_count{{model="{model}"}}' in text
    assert f'deepflow_gateway_completion_tokens_total{{model="{model}"}}' in text
    assert 'deepflow_gateway_errors_total{reason="model_not_found"}' in text
    assert 'deepflow_process_build_info{python="' in text
    assert 'model="nobody"' not in text, "what was asked for is no label before it is known"


def test_every_log_line_of_ours_is_json(stack: Stack, http: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "prompt": "x",
        "max_tokens": 2,
        "structured_outputs": {"regex": "(a|b){2}"},
    }
    http.post("/v1/completions", json=body)
    seen: set[str] = set()
    for path in sorted((stack.data_dir / "logs").glob("*.log")):
        if path.stem in FOREIGN_LOGS:
            continue
        whole, _, _ = path.read_text().rpartition("\n")  # the last line may be half written
        for line in whole.splitlines():
            seen.add(json.loads(line)["service"])
    assert {"gateway", "job_executor", "task_executor", "cluster_manager", "kv_store"} <= seen


def test_the_doctor_sees_the_stack(stack: Stack) -> None:
    done = stack.cli("doctor", "--json", "--port", str(stack.port), check=False)
    found = {it["about"]: it for it in json.loads(done.stdout)["findings"]}
    assert "processes run" in found["stack"]["says"]
    assert found[f"port {stack.port}"]["says"].startswith("this stack's gateway")
