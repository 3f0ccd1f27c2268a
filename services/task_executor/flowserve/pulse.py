"""A sign of life from a thread of its own, several times a second, for who watches the engine.

It stands still where some other thread holds the interpreter and does not let go: then nobody in
this process could say that anything is wrong.
"""

import threading

from services.task_executor.flowserve.marks import MOMENT_NS, Marks

BEAT_SECONDS = 0.1


class Pulse:
    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._is_ending = threading.Event()
        self._marks.work(MOMENT_NS)  # from now on one is owed
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_ending.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._is_ending.wait(BEAT_SECONDS):
            self._marks.work(MOMENT_NS)
        self._marks.rest()
