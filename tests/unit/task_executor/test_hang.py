import os
import signal
import subprocess

import pytest

from services.task_executor.flowserve.step_clock import StepInProgress
from services.task_executor.shell.hang import Suspension, is_hung, is_stopped


@pytest.mark.parametrize(
    ("started", "predicted", "now", "hung"),
    [
        (0.0, 0.0, 29.0, False),
        (0.0, 0.0, 31.0, True),
        (0.0, 5.0, 99.0, False),
        (0.0, 5.0, 101.0, True),
        (100.0, 0.01, 120.0, False),
    ],
)
def test_a_hang_is_a_step_far_beyond_its_prediction(
    started: float, predicted: float, now: float, hung: bool
) -> None:
    running = StepInProgress(step=1, started_seconds=started, predicted_seconds=predicted)
    assert is_hung(running, now, now, factor=20.0, floor_seconds=30.0) is hung


@pytest.mark.parametrize(("quiet_for", "hung"), [(0.0, False), (29.0, False), (31.0, True)])
def test_work_without_a_step_or_a_word_is_a_hang(quiet_for: float, hung: bool) -> None:
    assert is_hung(None, 100.0 - quiet_for, 100.0, factor=20.0, floor_seconds=30.0) is hung


def test_a_suspension_is_counted_from_when_it_was_first_seen() -> None:
    suspension = Suspension()
    seen = [(False, 0.0), (True, 10.0), (True, 13.0), (False, 14.0), (True, 15.0), (True, 16.0)]
    assert [suspension.seconds(*it) for it in seen] == [0, 0, 3, 0, 0, 1]


def test_the_kernel_says_who_is_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert not is_stopped(process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert is_stopped(process.pid)
        finally:
            process.kill()
    assert not is_stopped(process.pid)
