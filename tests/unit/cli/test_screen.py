"""What `up` and `status` print."""

import ast
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from deepflow.cli.greeting import greeting
from deepflow.cli.models_table import deployments_table, models_table
from deepflow.cli.reporters import JsonReporter, PlainReporter, write_line
from deepflow.cli.status import _joined
from deepflow.cli.status_table import age, load_words
from deepflow.local.progress import Ready, Steps


def ready(has_chat_template: bool = True) -> Ready:
    return Ready(
        model="demo",
        device="emulated:zero",
        has_chat_template=has_chat_template,
        urls=["http://127.0.0.1:8000", "http://127.0.0.1:8001"],
        data_dir=Path("/data"),
        log_dir=Path("/data/logs"),
        pid=7,
        seconds=4.2,
        step_seconds={"kv_store": 0.5},
    )


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (ready(), "chat/completions"),
        (ready(has_chat_template=False), "completions"),
        (replace(ready(), makes_embeddings=True), "embeddings"),
    ],
)
def test_the_printed_lines_are_whole_programs(model: Ready, path: str) -> None:
    text = greeting(model)
    curl = text[text.index("curl ") : text.index("\n\nor from Python")]
    assert f"http://127.0.0.1:8000/v1/{path} " in curl
    body = curl[curl.index("-d '") + 4 : -1]
    assert json.loads(body)["model"] == "demo"
    program = text[text.index("from openai") : text.index("\n\nLogs")]
    ast.parse(program)


def test_over_tls_the_printed_lines_trust_its_ca() -> None:
    secured = replace(ready(), urls=["https://127.0.0.1:8000"], ca=Path("/my tls/ca.pem"))
    text = greeting(secured)
    assert "curl --cacert '/my tls/ca.pem' https://127.0.0.1:8000/v1/" in text
    program = text[text.index("import ssl") : text.index("\n\nLogs")]
    ast.parse(program)
    assert "cafile='/my tls/ca.pem'" in program
    assert "under a name" in greeting(replace(secured, ca=None))


def test_emulated_answers_are_called_so() -> None:
    assert "emulated:zero" in greeting(ready())


def test_every_step_is_a_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(PlainReporter()).step("kv_store"):
        pass
    assert capsys.readouterr().out.split() == ["kv_store", "0.00", "s"]


def test_json_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonReporter()
    with Steps(reporter).step("kv_store"):
        pass
    reporter.ready(ready())
    events: list[dict[str, Any]] = [
        json.loads(line) for line in capsys.readouterr().out.splitlines()
    ]
    assert [event["event"] for event in events] == ["step_started", "step_done", "ready"]
    assert events[2]["url"] == "http://127.0.0.1:8000"
    assert events[2]["log_dir"] == "/data/logs"


def test_a_reader_that_left_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        write_line("into the void")
        write_line("and again")


ROW = {
    "name": "te-0",
    "service": "task_executor",
    "pid": 5,
    "state": "running",
    "since_unix_ms": 1000,
    "restarts": 0,
    "exit_code": None,
    "log_file": "x",
}
MEMBER = {
    "id": "te-0",
    "pid": 5,
    "state": "ready",
    "detail": "",
    "deployment": "demo",
    "load": None,
    "address": "a",
    "health_address": "b",
    "state_since_unix_ms": 2000,
}


def test_a_members_own_word_counts() -> None:
    joined = _joined(ROW, MEMBER)
    assert (joined["state"], joined["deployment"], joined["since_unix_ms"]) == (
        "ready",
        "demo",
        2000,
    )
    assert joined["process_state"] == "running"


@pytest.mark.parametrize(
    ("row", "member"),
    [(ROW, None), (ROW, MEMBER | {"pid": 4}), (ROW | {"state": "restarting", "pid": None}, MEMBER)],
)
def test_an_earlier_life_does_not(row: dict[str, Any], member: dict[str, Any] | None) -> None:
    joined = _joined(row, member)
    assert joined["state"] == row["state"]
    assert joined["since_unix_ms"] == 1000


def test_ages_have_the_units_that_matter() -> None:
    assert [age(s) for s in (-1, 42, 190, 7500)] == ["0 s", "42 s", "3 min 10 s", "2 h 5 min"]


def test_load_in_words() -> None:
    load = {
        "running": 2,
        "waiting": 1,
        "total_blocks": 10,
        "free_blocks": 4,
        "tokens_per_second": 99.6,
        "kv_tiers": [],
    }
    assert load_words(load) == "2 running, 1 waiting, 6/10 blocks, 100 tokens/s"
    sizes = {"bytes": 4 << 30, "used_bytes": 1 << 20, "kept_bytes": 1 << 30}
    tiers = [{"name": name, **sizes} for name in ("device", "dram", "disk")]
    assert load_words(load | {"kv_tiers": tiers, "tokens_per_second": 0.0}) == (
        "2 running, 1 waiting, 6/10 blocks, dram 1.00 GiB of 4.00 GiB, disk 1.00 GiB of 4.00 GiB"
    )
    assert load_words(None) == ""


DEPLOYMENT: dict[str, Any] = {
    "name": "a-model",
    "state": "ready",
    "ready": 1,
    "replicas": 1,
    "device": "emulated:ascend-910b",
    "architecture": "LlamaForCausalLM",
    "parameters": 1_235_814_400,
    "weight_bytes": 5 << 30,
    "dtype": "float32",
    "kv_bytes": 1 << 30,
    "max_tokens": 16368,
    "context_length": 131072,
    "source": "/home/somebody/models/Llama-3.2-1B-Instruct",
}


@pytest.mark.parametrize("width", [72, 80, 200])
@pytest.mark.parametrize("table", [models_table, deployments_table])
def test_no_terminal_is_too_narrow_for_what_is_served(
    table: Callable[[list[dict[str, Any]]], Table], width: int
) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table([DEPLOYMENT]))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for shown in ("ready", "1/1", "LlamaForCausalLM,", "1.24 B", "5.00 GiB", "float32,", "16368"):
        assert shown in words
    if table is models_table:
        assert DEPLOYMENT["source"] in text.replace("\n", "").replace(" ", "")
