"""The shell's side of lost ranks: whatever happens to one, there is an engine again."""

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from deepflow.errors import DeepFlowError
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.flowserve.messages import Load, Loaded, LoadFailed, StepOutput, Submit
from services.task_executor.shell.engine import EngineProcess
from tests.integration.rank_rig import DEADLINE_SECONDS, DIED, JOINING, make_fragile
from tests.servers import until

# Each starts two engines of two ranks.
pytestmark = pytest.mark.timeout(400)

ENDLESS = SamplingParams(900, temperature=0.0, ignore_eos=True)
LOAD = Load(
    "demo",
    str(MODEL_DIR),
    "cpu",
    "r1",
    settings={"tensor_parallel": 2, "cpu_threads": 2, "kv_blocks": 80},
)


class Shell:
    """An engine as the shell keeps it, and what becomes of it."""

    def __init__(self) -> None:
        self.engine = EngineProcess(TaskExecutorConfig(cluster_token="token"))
        self.lost: list[DeepFlowError] = []
        self.tokens = 0
        self.engine.on_lost.append(self.lost.append)
        self.engine.on_step.append(self._count)

    def start(self) -> None:
        self.engine.start()

    @property
    def pid(self) -> int:
        assert self.engine.process is not None
        return self.engine.process.pid

    async def answers(self) -> None:
        assert isinstance(await self.engine.load(LOAD), Loaded)
        self.tokens = 0
        self.ask()
        await until(lambda: self.tokens > 0, seconds=DEADLINE_SECONDS, what="it answers")

    def ask(self, handle: int = 1) -> None:
        self.engine.submit(Submit(handle, [5, 6, 7], ENDLESS))

    def _count(self, output: StepOutput) -> None:
        self.tokens += len(output.token_ids)


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    for name, value in make_fragile(tmp_path).items():
        monkeypatch.setenv(name, value)
    shell = Shell()
    yield shell
    await shell.engine.close()


@pytest.mark.parametrize("how", [signal.SIGVTALRM, signal.SIGPROF], ids=["waits", "says nothing"])
async def test_an_engine_whose_own_rank_hangs_is_replaced(
    shell: Shell, how: signal.Signals
) -> None:
    shell.start()
    await shell.answers()
    os.kill(shell.pid, how)
    shell.ask(2)  # whoever looked away for long: the first answer may have ended before
    await until(lambda: bool(shell.lost), seconds=DEADLINE_SECONDS, what="it is noticed")
    await shell.answers()


async def test_a_load_that_loses_a_rank_fails_and_the_next_one_does_not(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT", JOINING)
    shell.start()
    shell.engine.on_lost.append(lambda _: monkeypatch.delenv("DIES_AT"))
    failed = await shell.engine.load(LOAD)
    assert isinstance(failed, LoadFailed)
    assert re.fullmatch(DIED, failed.message)
    await until(lambda: bool(shell.lost), seconds=DEADLINE_SECONDS, what="the engine has ended")
    await shell.answers()
