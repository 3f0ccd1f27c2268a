"""Steps run in a thread of their own, so that the next one is planned meanwhile.

A device at work leaves the interpreter to others: torch's kernels and the waiting of emulated
devices both do.
"""

import ctypes
import os
import sys
import threading
from collections import deque
from queue import SimpleQueue

from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.ring import wait_readable

# By default a thread that has something to do waits five milliseconds for one that computes.
SWITCH_SECONDS = 0.0005
# Keeps the interpreter, which os.eventfd_write gives away: the master would have it before the next
# step is begun, and the device would stand still while it takes in the last one.
_wake = ctypes.PyDLL(None).eventfd_write
_wake.argtypes = [ctypes.c_int, ctypes.c_uint64]


class ThreadedRunner:
    def __init__(self, executor: Executor, depth: int) -> None:
        self.depth = depth
        self._executor = executor
        self._plans: SimpleQueue[StepPlan | None] = SimpleQueue()
        self._outcomes: deque[StepResult | Exception] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._thread = threading.Thread(target=self._work, name="steps", daemon=True)
        self._thread.start()
        sys.setswitchinterval(min(SWITCH_SECONDS, sys.getswitchinterval()))

    @property
    def wake_fds(self) -> tuple[int, ...]:
        return (self._wake_fd,)

    @property
    def is_ready(self) -> bool:
        return bool(self._outcomes)

    def submit(self, plan: StepPlan) -> None:
        self._plans.put(plan)

    def collect(self) -> StepResult:
        wait_readable(self.wake_fds, None)
        os.eventfd_read(self._wake_fd)
        outcome = self._outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        self._plans.put(None)
        self._thread.join()
        os.close(self._wake_fd)
        self._executor.close()

    def _work(self) -> None:
        while (plan := self._plans.get()) is not None:
            try:
                self._outcomes.append(self._executor.execute(plan))
            except Exception as error:  # raised where the step is collected
                self._outcomes.append(error)
            _wake(self._wake_fd, 1)
