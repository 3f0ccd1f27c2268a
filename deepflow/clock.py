"""The two clocks of the edges. Pure cores read neither: time is passed to them."""

import time


def monotonic() -> float:
    """Seconds that never go back: for durations and deadlines inside one process."""
    return time.monotonic()


def unix_ms() -> int:
    """Milliseconds since 1970: for what other machines and people read."""
    return time.time_ns() // 1_000_000
