"""Looks at one process that leaves marks, and weighs what kept it from leaving more."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from deepflow.core.process_state import Usage, usage_of
from services.task_executor.flowserve.marks import Mark, Marks
from services.task_executor.flowserve.vigil import Look, Silence


class Eye:
    def __init__(self, marks: Marks, read_usage: Callable[[], Usage]) -> None:
        self._marks = marks
        self._read_usage = read_usage
        self._usage: Usage | None = None  # at the look before, where it was silent then
        self._looked = 0.0
        self.silence = Silence(Mark())

    @classmethod
    def on(cls, marks: Marks, pid: int) -> "Eye":
        return cls(marks, partial(usage_of, pid))

    def look(self, now: float, *, is_told: bool = False) -> Look:
        """`now` is on the monotonic clock; `is_told`: there is something that it has not read."""
        passed, self._looked = now - self._looked, now
        look = Look(self._marks.read(), is_told, passed)
        if look.mark == self.silence.mark and not look.is_idle:
            look = self._weigh(look)
        else:
            self._usage = None
        self.silence = self.silence.after(look)
        return look

    def forget(self) -> None:
        """What was seen so far: there is a reason for it."""
        self._usage = None
        self.silence = Silence(self.silence.mark)

    def _weigh(self, look: Look) -> Look:
        before, usage = self._usage, self._read_usage()
        self._usage = usage
        if before is None:
            return replace(look, passed_seconds=0.0)
        # A thread that ended meanwhile took its share out of the sum.
        excused = max(0, usage.delayed_ns - before.delayed_ns) / 1e9
        if usage.is_on_disk or usage.disk_faults != before.disk_faults:
            excused = look.passed_seconds
        has_computed = usage.cpu_ns != before.cpu_ns
        return replace(look, excused_seconds=excused, has_computed=has_computed)
