"""What bad requests get from a job executor: one clear refusal, and the next request works."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow.v1 import cluster_pb2, jobs_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.job_executor_rig import (
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    folder,
    gateway,
    job_executor,
    rig,
    tokenizer,
)
from tests.servers import until
from tests.unit.job_executor.model_folders import byte_level_tokenizer, write_folder

__all__ = ["executor", "folder", "gateway", "rig", "tokenizer"]

INVALID = types.ERROR_CODE_INVALID_REQUEST
LONG = "word " * 5000


def prompts(*texts: str) -> jobs_pb2.CompletionInput:
    return jobs_pb2.CompletionInput(prompts=[jobs_pb2.Prompt(text=text) for text in texts])


@pytest.mark.parametrize(
    ("job", "code", "param", "reason"),
    [
        ({"prompt": ""}, INVALID, "prompt", "invalid_value"),
        ({"prompt": []}, INVALID, "prompt", "invalid_value"),
        ({"completion": prompts()}, INVALID, "prompt", "invalid_value"),
        ({"completion": prompts("fine", "")}, INVALID, "prompt", "invalid_value"),
        ({"prompt": [1, 420]}, INVALID, "prompt", "token_id_out_of_range"),
        ({"prompt": [4294967295]}, INVALID, "prompt", "token_id_out_of_range"),
        ({"prompt": [5] * 200}, INVALID, "prompt", "context_length_exceeded"),
        ({"prompt": LONG}, INVALID, "prompt", "context_length_exceeded"),
        ({"chat": LONG}, INVALID, "messages", "context_length_exceeded"),
        ({"chat": "hi", "n": 129}, INVALID, "n", "invalid_value"),
        ({"completion": prompts(*["x"] * 65), "n": 2}, INVALID, "prompt", "invalid_value"),
        ({}, INVALID, "input", "invalid_value"),
        (
            {"prompt": "x", "model": "other"},
            types.ERROR_CODE_NOT_FOUND,
            "model",
            "model_not_found",
        ),
    ],
)
async def test_a_bad_request_is_refused_by_name(
    gateway: Gateway,
    executor: FakeTaskExecutor,
    job: dict[str, Any],
    code: types.ErrorCode.ValueType,
    param: str,
    reason: str,
) -> None:
    await gateway.submit(1, **job)
    error = await gateway.until_refused(1)
    assert (error.code, error.param, error.reason) == (code, param, reason)
    await gateway.submit(2, prompt="x")
    await gateway.until_admitted(2)


async def test_too_long_a_prompt_is_told_both_numbers(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, prompt=[5] * 200)
    message = (await gateway.until_refused(1)).message
    assert "maximum context length is 200 tokens" in message
    assert "resulted in 200 tokens" in message


async def test_the_longest_prompt_that_fits_leaves_one_token(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, prompt=[5] * 199, sampling=types.SamplingParams(max_tokens=50))
    _, task = await executor.task()
    assert task.sampling.max_tokens == 1


async def test_what_the_template_refuses_is_the_clients_fault(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    messages = [jobs_pb2.ChatMessage(role="bad", content="x")]
    job = jobs_pb2.Job(id="job-2", model="demo", chat=jobs_pb2.ChatInput(messages=messages))
    await gateway.send(submit=jobs_pb2.SubmitJob(handle=1, job=job))
    error = await gateway.until_refused(1)
    assert (error.code, error.param) == (INVALID, "messages")
    assert "no such role: bad" in error.message


async def test_nobody_to_serve_is_unavailable_with_a_hint(rig: Rig) -> None:
    await rig.show()
    gateway = await rig.gateway()
    await gateway.submit(1, prompt="x")
    error = await gateway.until_refused(1)
    assert error.code == types.ERROR_CODE_UNAVAILABLE
    assert error.retry_after_seconds > 0
    await gateway.close()


@pytest.fixture
async def plain_gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """In front of a model without a chat template, with room for one job."""
    folder = write_folder(tmp_path / "plain", byte_level_tokenizer())
    async with job_executor(folder, jobs_max=1) as rig:
        executor = FakeTaskExecutor("te-1")
        await executor.start()
        await rig.show(executor)
        gateway = await rig.gateway()
        yield gateway
        await gateway.close()
        await executor.stop()


async def test_a_chat_with_a_model_that_has_no_template(plain_gateway: Gateway) -> None:
    await plain_gateway.submit(1, chat="hi")
    error = await plain_gateway.until_refused(1)
    assert (error.code, error.reason) == (INVALID, "chat_template_missing")
    assert "/v1/completions" in error.message


async def test_one_job_over_the_limit_is_told_to_come_back(plain_gateway: Gateway) -> None:
    await plain_gateway.submit(1, prompt="x")
    await plain_gateway.submit(2, prompt="x")
    error = await plain_gateway.until_refused(2)
    assert (error.code, error.reason) == (types.ERROR_CODE_UNAVAILABLE, "job_executor_full")
    assert error.retry_after_seconds > 0
    await plain_gateway.until_admitted(1)
    await plain_gateway.send(cancel=jobs_pb2.CancelJob(handle=1))
    await plain_gateway.until_finished(1)
    await plain_gateway.submit(3, prompt="x")
    await plain_gateway.until_admitted(3)


async def test_a_template_that_never_ends_is_interrupted(tmp_path: Path) -> None:
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        "{{ messages[0].content }}"
    )
    folder = write_folder(tmp_path, byte_level_tokenizer(), chat_template=endless)
    async with job_executor(folder, template_seconds_max=0.2, tokenizer_threads=1) as rig:
        await rig.show()
        gateway = await rig.gateway()
        handles = itertools.count(1)

        async def is_interrupted() -> bool:
            handle = next(handles)
            await gateway.submit(handle, chat="hi")
            error = await gateway.until_refused(handle)
            if error.reason == "tokenizer_queue_full":
                return False  # its thread had not begun
            assert (error.code, error.reason) == (INVALID, "prompt_timeout")
            assert error.param == "messages"
            return True

        for _ in range(2):  # the second shows that the only thread is free again
            await until(is_interrupted, what="an interruption")
        await gateway.close()


async def test_a_model_whose_tokenizer_is_broken_is_unavailable_until_it_is_mended(
    rig: Rig, tmp_path: Path, executor: FakeTaskExecutor, gateway: Gateway, tokenizer: Tokenizer
) -> None:
    broken = cluster_pb2.Deployment()
    broken.CopyFrom(rig.deployment)
    broken.source, broken.facts.model_revision = str(tmp_path), "2"
    (tmp_path / "tokenizer.json").write_text("{}")
    await rig.show(executor, deployments=[broken])
    await gateway.submit(1, prompt="x")
    assert (await gateway.until_refused(1)).code == types.ERROR_CODE_UNAVAILABLE
    write_folder(tmp_path, tokenizer)
    await gateway.submit(2, prompt="x")
    await gateway.until_admitted(2)
