import os
import signal
import subprocess

import pytest

from deepflow.core.process_state import Usage
from services.task_executor.flowserve.eye import Eye
from services.task_executor.flowserve.marks import MOMENT_NS, Marks
from services.task_executor.flowserve.step_clock import StepInProgress
from services.task_executor.flowserve.vigil import SILENCE_SECONDS_MIN
from services.task_executor.shell.hang import PulseTaker, Suspension, is_hung, is_stopped


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


LOOKS_MAX = 100


def looks_until_lost(taker: PulseTaker, *, has_step: bool, is_stopped: bool) -> int:
    """Each a tenth of a second after the one before; LOOKS_MAX where it is never lost."""
    for number in range(1, LOOKS_MAX):
        if taker.is_lost(has_step, is_stopped, number / 10):
            return number
    return LOOKS_MAX


def taker_of(marks: Marks) -> PulseTaker:
    """Of a process that nothing keeps from running."""
    return PulseTaker(Eye(marks, Usage))


def test_an_interpreter_that_stands_still_in_a_step_is_lost() -> None:
    marks = Marks.private()
    marks.work(MOMENT_NS)
    looks = looks_until_lost(taker_of(marks), has_step=True, is_stopped=False)
    assert SILENCE_SECONDS_MIN < looks / 10 < 2 * SILENCE_SECONDS_MIN


@pytest.mark.parametrize(("has_step", "is_stopped"), [(False, False), (True, True)])
def test_between_steps_and_while_it_is_stopped_it_owes_no_pulse(
    has_step: bool, is_stopped: bool
) -> None:
    marks = Marks.private()
    marks.work(MOMENT_NS)
    taker = taker_of(marks)
    assert looks_until_lost(taker, has_step=has_step, is_stopped=is_stopped) == LOOKS_MAX


def test_an_engine_without_ranks_has_no_pulse() -> None:
    marks = Marks.private()
    marks.rest()
    taker = taker_of(marks)
    assert looks_until_lost(taker, has_step=True, is_stopped=False) == LOOKS_MAX


def test_a_process_that_others_keep_from_running_is_given_the_time_they_took() -> None:
    delays = (Usage(delayed_ns=number * 50_000_000) for number in range(LOOKS_MAX))
    marks = Marks.private()
    marks.work(MOMENT_NS)
    taker = PulseTaker(Eye(marks, delays.__next__))
    looks = looks_until_lost(taker, has_step=True, is_stopped=False)
    assert 2 * SILENCE_SECONDS_MIN < looks / 10 < 4 * SILENCE_SECONDS_MIN
