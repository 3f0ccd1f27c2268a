"""The whole engine on the card answers as it does on the CPU: hits, preemption, tiers, ranks."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.engine import FlowServe
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS
from tests.gpu.opened import DEVICE
from tests.integration.checkpoints import Checkpoint
from tests.integration.test_rank_parity import GREEDY, SCORED, TIGHT, Watched, check

LENGTHS = (37, 1, 16, 63, 5)
PREFIX_TOKENS = 64


def check_against_the_cpu(folder: Path, device: str, **more: int) -> None:
    """Chunks, decodes, preemption, a prefix hit, scored prompts."""
    checkpoint = Checkpoint(folder, "qwen3: every other layer slides, gqa-3")
    prompts = [checkpoint.prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    sampling = [GREEDY, GREEDY, GREEDY, GREEDY, SCORED]
    with FlowServe(folder, "cpu", "float32", **TIGHT) as alone:
        expected = alone.generate(prompts, sampling)
    engine = Watched(folder, device, "float32", **(TIGHT | more))
    with engine:
        check(engine.generate(prompts, sampling), expected)
        assert engine.preemptions
        [again] = engine.generate(prompts[3:4], GREEDY)
        check([again], expected[3:4])
        assert again.cached_tokens >= 48


@pytest.mark.gpu
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_it_answers_as_on_the_cpu(tmp_path: Path, steps_in_flight: int) -> None:
    check_against_the_cpu(tmp_path, DEVICE, steps_in_flight=steps_in_flight)


@pytest.mark.gpu
@pytest.mark.usefixtures("two_cards")
def test_so_do_two_cards(tmp_path: Path) -> None:
    check_against_the_cpu(tmp_path, DEVICE, tensor_parallel=2)


def test_the_check_itself_without_a_card(tmp_path: Path) -> None:
    check_against_the_cpu(tmp_path, "cpu", steps_in_flight=2)


@contextmanager
def with_dram(folder: Path, device: str) -> Iterator[FlowServe]:
    settings = TIGHT | {"max_tokens": 128, "kv_dram_bytes": 4 << 20}
    load = Load("t", str(folder), device, "r1", settings, dtype="float32")
    with FlowServe.loaded(load) as engine:
        engine._master.prefetch.choice = ALWAYS
        yield engine


def check_hits_from_dram(folder: Path, device: str) -> None:
    """Transformers' answer after a prefix whose KV went to the host's memory and came back."""
    checkpoint = Checkpoint(folder, "llama: plain")
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    sampling = SamplingParams(8, temperature=0.0, ignore_eos=True)
    draw = random.Random(7)
    with with_dram(folder, device) as engine:
        engine.generate([[*prefix, 5]], sampling)
        for _ in range(6):  # until nothing of before is left on the device
            crowd = [draw.randrange(3, checkpoint.vocab_size) for _ in range(PREFIX_TOKENS + 5)]
            engine.generate([crowd], sampling)
        [answer] = engine.generate([[*prefix, 6]], sampling)
        assert engine._master.prefetch.decisions["fetch"]
    reference = checkpoint.greedy([*prefix, 6], 8)
    assert answer.cached_tokens == PREFIX_TOKENS
    assert answer.token_ids == reference.token_ids
    assert answer.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


@pytest.mark.gpu
def test_prefix_hits_from_the_hosts_memory(tmp_path: Path) -> None:
    check_hits_from_dram(tmp_path, DEVICE)


def test_the_check_of_hits_without_a_card(tmp_path: Path) -> None:
    check_hits_from_dram(tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["", "int8"])
def test_what_is_served_with_fewer_bits_ends_and_repeats(tmp_path: Path, dtype: str) -> None:
    """Alone and among others: greedy, and drawn by chance."""
    checkpoint = Checkpoint(tmp_path, "llama: plain")
    prompts = [checkpoint.prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    drawn = SamplingParams(12, temperature=0.8, top_p=0.9, seed=3, ignore_eos=True)
    with FlowServe(tmp_path, DEVICE, dtype, **(TIGHT | {"kv_blocks": 64})) as engine:
        for sampling in (GREEDY, drawn):
            answers = engine.generate(prompts, sampling)
            again = engine.generate(prompts, sampling)
            assert {len(it.token_ids) for it in answers} == {sampling.max_tokens}
            assert [it.token_ids for it in again] == [it.token_ids for it in answers]


@pytest.mark.gpu
def test_the_bench_reports_how_near_decodes_come_to_the_memorys_rate() -> None:
    command = [sys.executable, "-m", "deepflow.cli.main", "bench", "engine", "--device", DEVICE]
    sizes = ["--shape", "llama-15m", "--requests", "4", "--output", "32", "--rounds", "1"]
    done = subprocess.run(
        [*command, *sizes, "--json"], capture_output=True, text=True, check=True, timeout=150
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["roofline"] == "memory" and report["copy_bytes_s"] > 1e11
    assert 0 < report["roofline_fraction"] < 1.2
