"""A benchmark ends before its time: whoever tells it to, what it started and wrote goes."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from deepflow.cli.common import fail

EXIT_BY_SIGNAL = 128  # and the signal's number: 130 after Ctrl-C


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Within it a SIGTERM unwinds as Ctrl-C does. What comes of either is one line."""
    told_by = signal.SIGINT

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal told_by
        told_by = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # asyncio answers it by cancelling, and so cleanly

    former = {
        # A script's background job is born with it ignored.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        yield
    except KeyboardInterrupt:
        fail("the benchmark was told to end: nothing was measured", EXIT_BY_SIGNAL + told_by)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
