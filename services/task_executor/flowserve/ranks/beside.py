"""Our own share of what all ranks do, in a thread: it may wait for one that is gone by now."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Done = TypeVar("Done")

_LOOK_SECONDS = 0.05


class Beside(Generic[Done]):
    def __init__(self, work: Callable[[], Done]) -> None:
        self._work = work
        self._outcome: list[Done] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beside-ranks", daemon=True)
        self._thread.start()

    def result(self, require_others: Callable[[], None]) -> Done:
        """What it returned or raised; `require_others` raises where it would wait for nobody."""
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)
            if self._thread.is_alive():
                require_others()
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def finish(self) -> None:
        """Wait for it, whatever becomes of it."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._outcome.append(self._work())
        except BaseException as error:  # raised where the result is asked for
            self._error = error
