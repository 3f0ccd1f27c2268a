"""KV that came back from memory and disk is the KV that was computed: answers are transformers'."""

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.engine import FlowServe, Generation
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler import copy_watch
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS
from tests.integration.checkpoints import Checkpoint

PREFIX_TOKENS = 64
TOKENS = 8
ATTEMPTS_MAX = 50
SAMPLING = SamplingParams(TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
MIB = 1 << 20
TIERS = {
    "dram": {"kv_dram_bytes": 4 * MIB},
    "disk": {"kv_disk_bytes": 4 * MIB},
}
SHAPES = ["llama: plain", "qwen3: biases, yarn rope with every number"]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is only slow is waited for."""
    monkeypatch.setattr(copy_watch, "PATIENCE_SECONDS", 120.0)


@contextmanager
def engine(
    folder: Path, disk: Path | None, settings: dict[str, int], device: str = "cpu"
) -> Iterator[FlowServe]:
    usual = {"kv_blocks": 12, "max_tokens": 128, "max_sequences": 4, "block_size": 16}
    if device == "cpu":
        usual["cpu_threads"] = 1
    load = Load("t", str(folder), device, "r1", usual | settings, kv_disk_folder=str(disk or ""))
    with FlowServe.loaded(load) as engine:
        engine._master.prefetch.choice = ALWAYS
        yield engine


def ask(engine: FlowServe, prompt: list[int], sampling: SamplingParams = SAMPLING) -> Generation:
    (answer,) = engine.generate([prompt], sampling)
    assert not answer.message
    return answer


def crowd_out(engine: FlowServe, vocabulary: int) -> None:
    """Enough of other prompts that nothing of before is left on the device."""
    for prompt in crowd(vocabulary):
        ask(engine, prompt)


def put_away(engine: FlowServe, vocabulary: int) -> None:
    """The same, and nothing of before is lost, however slow the copies are."""
    settle(engine)
    for prompt in crowd(vocabulary):
        ask(engine, prompt)
        settle(engine)


def crowd(vocabulary: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(3, vocabulary) for _ in range(PREFIX_TOKENS + 5)] for _ in range(6)]


def settle(engine: FlowServe) -> None:
    """Until nothing is put away any more: nobody waits for that, and it may come too late."""
    master = engine._master
    master.step()
    while master.cache.num_copying:
        wait_readable(master.wake_fds, 1.0)
        master.step()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_prefix_hits_from_each_tier_answer_as_transformers_does(
    tmp_path: Path, shape: str, tier: str, steps_in_flight: int
) -> None:
    checkpoint = Checkpoint(tmp_path / "model", shape)
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    settings = {"steps_in_flight": steps_in_flight, **TIERS[tier]}
    with engine(tmp_path / "model", tmp_path / "kv", settings) as flow:
        ask(flow, [*prefix, 5])
        for last in (6, 7):
            put_away(flow, checkpoint.vocab_size)
            answer = ask(flow, [*prefix, last])
            reference = checkpoint.greedy([*prefix, last], TOKENS)
            assert answer.cached_tokens == PREFIX_TOKENS
            assert answer.token_ids == reference.token_ids
            assert answer.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
        assert flow._master.prefetch.decisions["fetch"] >= 2
    assert not list((tmp_path / "kv").glob("life-*"))


@pytest.mark.usefixtures("patience")
def test_damaged_files_are_misses_and_never_wrong_answers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "model", "llama: plain")
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    reference = checkpoint.greedy([*prefix, 6], TOKENS)
    with engine(tmp_path / "model", tmp_path / "kv", TIERS["disk"]) as flow:
        ask(flow, [*prefix, 5])
        put_away(flow, checkpoint.vocab_size)
        for number, file in enumerate((tmp_path / "kv").glob("*/*.kv")):
            content = bytearray(file.read_bytes())
            content[-1 - number] ^= 0xFF
            file.write_bytes(content[: -1 if number % 2 else None])
        answer = ask(flow, [*prefix, 6])
        assert answer.cached_tokens == 0 and answer.token_ids == reference.token_ids
        crowd_out(flow, checkpoint.vocab_size)
        assert ask(flow, [*prefix, 6]).token_ids == reference.token_ids


@pytest.mark.usefixtures("patience")
def test_a_disk_folder_that_is_removed_costs_what_was_in_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "model", "llama: plain")
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    reference = checkpoint.greedy([*prefix, 6], TOKENS)
    with engine(tmp_path / "model", tmp_path / "kv", TIERS["disk"]) as flow:
        ask(flow, [*prefix, 5])
        put_away(flow, checkpoint.vocab_size)
        shutil.rmtree(tmp_path / "kv")
        answer = ask(flow, [*prefix, 6])
        assert answer.cached_tokens == 0 and answer.token_ids == reference.token_ids
        assert_it_comes_back(flow, checkpoint, prefix)
    assert not list((tmp_path / "kv").glob("life-*"))


def test_a_full_disk_is_used_again_once_it_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path / "model", "llama: plain")
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    with engine(tmp_path / "model", tmp_path / "kv", TIERS["disk"]) as flow:
        (life,) = (tmp_path / "kv").glob("life-*")
        full = [life / f"{block}.kv" for block in range(flow.config.kv_disk_blocks)]
        for file in full:
            file.symlink_to("/dev/full")
        ask(flow, [*prefix, 5])
        for _ in range(ATTEMPTS_MAX):
            crowd_out(flow, checkpoint.vocab_size)
            if os.strerror(errno.ENOSPC) in caplog.text:
                break
        assert os.strerror(errno.ENOSPC) in caplog.text
        for file in full:
            file.unlink(missing_ok=True)
        assert_it_comes_back(flow, checkpoint, prefix)


def assert_it_comes_back(flow: FlowServe, checkpoint: Checkpoint, prefix: list[int]) -> None:
    """From the disk, and right; only then, for a disk that failed is left alone for a while."""
    reference = checkpoint.greedy([*prefix, 6], TOKENS)
    for _ in range(ATTEMPTS_MAX):
        crowd_out(flow, checkpoint.vocab_size)
        answer = ask(flow, [*prefix, 6])
        assert answer.token_ids == reference.token_ids
        if answer.cached_tokens == PREFIX_TOKENS:
            return
    pytest.fail("nothing comes back from the disk")


def test_a_disk_that_never_answers_holds_up_nobody_for_long(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "model", "llama: plain")
    prefix = checkpoint.prompt(PREFIX_TOKENS, seed=1)
    reference = checkpoint.greedy([*prefix, 6], TOKENS)
    with engine(tmp_path / "model", tmp_path / "kv", TIERS["disk"]) as flow:
        ask(flow, [*prefix, 5])
        put_away(flow, checkpoint.vocab_size)
        files = list((tmp_path / "kv").glob("*/*.kv"))
        for file in files:  # who opens a pipe waits for the other end
            file.unlink()
            os.mkfifo(file)
        try:
            answer = ask(flow, [*prefix, 6])
            assert answer.cached_tokens == 0 and answer.token_ids == reference.token_ids
            assert flow._master.cache.num_arriving
        finally:
            ends = [os.open(file, os.O_RDWR | os.O_NONBLOCK) for file in files]
            for file in files:  # all of them first: who is let go opens the next one
                file.unlink()
            for end in ends:
                os.close(end)


@pytest.mark.usefixtures("patience")
def test_many_at_a_time_over_three_tiers_answer_as_they_do_alone(tmp_path: Path) -> None:
    """On an emulated device too, whose answers change with every wrong block."""
    draw = random.Random(3)
    prefixes = [[draw.randrange(3, 400) for _ in range(48)] for _ in range(12)]
    prompts = [[*draw.choice(prefixes), draw.randrange(3, 400)] for _ in range(60)]
    with engine(MODEL_DIR, tmp_path / "kv", {"kv_blocks": 200}, "emulated:zero") as flow:
        expected = [answer.token_ids for answer in flow.generate(prompts, SAMPLING_PLAIN)]
        block_bytes = flow.config.kv_bytes // flow.config.kv_blocks
    few = {"kv_dram_bytes": 12 * block_bytes, "kv_disk_bytes": 60 * (block_bytes + 64)}
    for depth in (1, 2):
        settings = {**few, "steps_in_flight": depth}
        with engine(MODEL_DIR, tmp_path / "kv", settings, "emulated:zero") as flow:
            fetched = flow._master.prefetch.costs.block_seconds
            for _ in range(ROUNDS_MAX):  # the copying may be slower than the computing
                for first in range(0, len(prompts), 5):
                    answers = flow.generate(prompts[first : first + 5], SAMPLING_PLAIN)
                    assert [it.token_ids for it in answers] == expected[first : first + 5]
                if {Tier.DRAM, Tier.DISK} <= fetched.keys():
                    break
            assert {Tier.DRAM, Tier.DISK} <= fetched.keys()


ROUNDS_MAX = 50
SAMPLING_PLAIN = SamplingParams(TOKENS, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_dram_bytes": 10}, "kv_dram_bytes is 10 bytes, but a block takes"),
        ({"kv_disk_bytes": 10}, "kv_disk_bytes is 10 bytes, but a block takes"),
        ({"kv_dram_bytes": 1 << 60}, "kv_dram_bytes"),
        ({"kv_disk_bytes": 1 << 60}, "kv_disk_bytes"),
        ({"kv_dram_bytes": 1 << 60, "tensor_parallel": 2}, "kv_dram_bytes"),
    ],
)
def test_tiers_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words), engine(MODEL_DIR, tmp_path, settings):
        pass
    assert not list(tmp_path.glob("*"))


def test_memory_alone_needs_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with engine(MODEL_DIR, tmp_path / "file", {"kv_dram_bytes": MIB}, "emulated:zero") as flow:
        assert ask(flow, [5, 6, 7], SAMPLING_PLAIN).token_ids


def test_nobody_elses_folder_is_taken_where_all_users_have_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usual = tmp_path / f"deepflow-kv-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    usual.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(ValueError, match="belongs to somebody else"),
        engine(MODEL_DIR, None, {"kv_disk_bytes": MIB}, "emulated:zero"),
    ):
        pass
    usual.unlink()
    with engine(MODEL_DIR, None, {"kv_disk_bytes": MIB}, "emulated:zero"):
        assert usual.is_dir()


def test_a_folder_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="kv_disk_folder"),
        engine(MODEL_DIR, tmp_path / "file", {"kv_disk_bytes": MIB}),
    ):
        pass
