"""How many steps failed in a row: a few cost their own work, more mean a broken device."""

import logging

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3  # in a row; then the device is taken for broken


class EngineBroken(RuntimeError):
    """Nothing can run here any more: the engine has to start anew."""


class FailedSteps:
    def __init__(self) -> None:
        self._in_a_row = 0

    def succeeded(self) -> None:
        self._in_a_row = 0

    def failed(self, error: Exception) -> str:
        """What to tell those whose step it was; raises the error itself once it happens often."""
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAILED_STEPS or isinstance(error, EngineBroken):
            raise error
        log.exception("a step failed, and what ran in it with it", exc_info=error)
        return f"the engine failed: {error}"
