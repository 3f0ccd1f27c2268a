"""The real process on the emulated device, spoken to through real rings."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import (
    Cancel,
    ContextAnswer,
    ContextRequest,
    DropContext,
    FromEngine,
    KeepContext,
    ListContexts,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    StepOutput,
    Stop,
    Submit,
    ToEngine,
    Unload,
    Unloaded,
)
from services.task_executor.flowserve.ring import Ring, decode_from_engine, encode

TIMEOUT_SECONDS = 60.0
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


class Engine:
    """The shell's half of the conversation."""

    def __init__(self, outbox_bytes: int) -> None:
        self.rings = Ring.create(), Ring.create(outbox_bytes)
        self.writer, self.reader = self.rings[0].writer(), self.rings[1].reader()
        self.received: list[FromEngine] = []
        command = [sys.executable, "-m", "services.task_executor.flowserve"]
        for option, ring in zip(("--inbox", "--outbox"), self.rings, strict=True):
            command += [option, ",".join(map(str, ring.fds))]
        fds = [fd for ring in self.rings for fd in ring.fds]
        self.process = subprocess.Popen(command, pass_fds=fds)

    def send(self, message: ToEngine) -> None:
        self.writer.send(encode(message), TIMEOUT_SECONDS)

    def receive(self) -> FromEngine:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.received:
            assert time.monotonic() < deadline, "the engine says nothing"
            if not self.reader.wait(1.0):
                assert self.process.poll() is None, "the engine is gone"
            self.received += map(decode_from_engine, self.reader.drain())
        return self.received.pop(0)

    def receive_steps(self, *handles: int) -> list[StepOutput]:
        """Every step until all of these have ended."""
        outputs: list[StepOutput] = []
        missing = set(handles)
        while missing:
            output = self.receive()
            assert isinstance(output, StepOutput)
            outputs.append(output)
            missing -= {finished.handle for finished in output.finished}
        return outputs

    def load(self, source: Path) -> Loaded | LoadFailed:
        self.send(Load("demo", str(source), "emulated:zero", "r1"))
        while isinstance(message := self.receive(), Progress):
            pass
        assert isinstance(message, Loaded | LoadFailed)
        return message

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_SECONDS)
        for ring in self.rings:
            ring.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(getattr(request, "param", 1 << 20))
    yield engine
    engine.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return tmp_path


def tokens_of(outputs: list[StepOutput], handle: int) -> list[int]:
    tokens: list[int] = []
    for output in outputs:
        columns = zip(output.handles, output.first_indexes, output.token_ids, strict=True)
        for owner, first_index, token in columns:
            if owner == handle:
                assert first_index == len(tokens), "a token is lost or repeated"
                tokens.append(token)
    return tokens


def test_a_whole_life(engine: Engine, model: Path) -> None:
    engine.send(Submit(9, [1], SamplingParams(4)))
    (refused,) = engine.receive_steps(9)
    assert refused.finished[0].message == "the engine holds no model"

    engine.send(Load("demo", str(model), "emulated:zero", "r1"))
    steps = []
    while isinstance(message := engine.receive(), Progress):
        steps.append((message.step, message.seconds is not None))
    assert steps[:2] == [("read_config", False), ("read_config", True)]
    assert isinstance(message, Loaded) and message.max_tokens == 256

    engine.send(Submit(1, [1, 2, 3], SamplingParams(20, temperature=0.0, ignore_eos=True)))
    engine.send(Submit(2, [], SamplingParams(20)))
    outputs = engine.receive_steps(1, 2)
    finished = {end.handle: end for output in outputs for end in output.finished}
    assert finished[1].reason == "length" and len(tokens_of(outputs, 1)) == 20
    assert finished[2].reason == "error" and finished[2].invalid

    engine.send(Submit(3, [1, 2, 3], SamplingParams(200)))
    engine.send(Cancel([3, 77]))
    assert engine.receive_steps(3)[-1].finished[0].reason in ("cancelled", "length")

    engine.send(Unload())
    assert engine.receive() == Unloaded()
    assert isinstance(engine.load(model), Loaded)
    engine.send(Stop())
    assert engine.process.wait(TIMEOUT_SECONDS) == 0


def test_a_model_that_cannot_be_held_is_answered(engine: Engine, model: Path) -> None:
    failed = engine.load(model / "missing")
    assert isinstance(failed, LoadFailed) and "missing" in failed.message
    assert isinstance(engine.load(model), Loaded)
    assert isinstance(engine.load(model), Loaded)  # the same load twice is one load
    engine.send(Load("other", str(model), "emulated:zero", "r2"))
    other = engine.receive()
    assert isinstance(other, LoadFailed) and "unload it first" in other.message


@pytest.mark.parametrize("engine", [4096], indirect=True)
def test_a_full_ring_holds_the_engine_back_and_loses_nothing(engine: Engine, model: Path) -> None:
    assert isinstance(engine.load(model), Loaded)
    for handle in range(4):
        engine.send(
            Submit(handle, [handle + 1], SamplingParams(250, temperature=0.0, ignore_eos=True))
        )
    # Its answers are far larger than the ring, so it must have waited for this reader.
    outputs = engine.receive_steps(0, 1, 2, 3)
    assert sum(len(encode(output)) for output in outputs) > 4 * 4096
    assert all(len(tokens_of(outputs, handle)) == 250 for handle in range(4))


def test_unload_ends_what_runs(engine: Engine, model: Path) -> None:
    assert isinstance(engine.load(model), Loaded)
    engine.send(Submit(1, [1], SamplingParams(250)))
    engine.send(Unload())
    assert engine.receive_steps(1)[-1].finished[0].reason in ("cancelled", "length")
    while isinstance(message := engine.receive(), StepOutput):
        pass
    assert message == Unloaded()


def test_sigterm_ends_it_and_sigint_does_not(engine: Engine, model: Path) -> None:
    assert isinstance(engine.load(model), Loaded)
    engine.process.send_signal(signal.SIGINT)
    engine.send(Submit(1, [1], SamplingParams(4)))
    engine.receive_steps(1)
    engine.process.send_signal(signal.SIGTERM)
    assert engine.process.wait(TIMEOUT_SECONDS) == 0


# Starts an engine, sees that it is up (it answers, be it with a failure) and dies.
SHORT_LIVED_PARENT = """
import subprocess, sys
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ring import Ring, encode
rings = Ring.create(4096), Ring.create(4096)
inbox, outbox = (",".join(map(str, ring.fds)) for ring in rings)
subprocess.Popen(
    [sys.executable, "-m", "services.task_executor.flowserve", "--log-level", "critical",
     "--inbox", inbox, "--outbox", outbox],
    pass_fds=[fd for ring in rings for fd in ring.fds],
)
rings[0].writer().send(encode(Load("demo", "nowhere", "emulated:zero", "r1")))
assert rings[1].reader().wait(60.0)
"""


def test_it_ends_with_its_parent() -> None:
    """Parent and engine hold the write end of a pipe: its end is theirs."""
    read_end, write_end = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", SHORT_LIVED_PARENT], stdout=write_end)
    os.close(write_end)
    assert parent.wait(TIMEOUT_SECONDS) == 0
    assert select.select([read_end], [], [], TIMEOUT_SECONDS)[0], "the engine lives on"
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def ask(engine: Engine, message: ContextRequest) -> ContextAnswer:
    engine.send(message)
    while True:
        output = engine.receive()
        assert isinstance(output, StepOutput) and not output.finished
        if output.contexts:
            (answer,) = output.contexts
            assert answer.handle == message.handle
            return answer


def test_contexts_are_kept_used_and_dropped_over_the_ring(engine: Engine, model: Path) -> None:
    assert "no model" in ask(engine, ListContexts(1)).message
    engine.load(model)
    tokens = list(range(3, 43))
    (kept,) = ask(engine, KeepContext(2, "manual", tokens, 60.0, b"tenant")).contexts
    assert (kept.context_id, kept.num_tokens) == ("manual", 40) and kept.bytes_used > 0
    sampling = SamplingParams(4, temperature=0.0, ignore_eos=True)
    engine.send(Submit(3, [5], sampling, cache_salt=b"tenant", context_id="manual"))
    by_name = engine.receive_steps(3)
    assert by_name[-1].finished[0].cached_tokens == 32
    engine.send(Submit(4, [*tokens, 5], sampling, cache_salt=b"tenant"))
    assert tokens_of(engine.receive_steps(4), 4) == tokens_of(by_name, 3)
    assert [it.context_id for it in ask(engine, ListContexts(5, b"tenant")).contexts] == ["manual"]
    assert not ask(engine, DropContext(6, "manual", b"tenant")).message
    assert ask(engine, ListContexts(7, b"tenant")).contexts == []
