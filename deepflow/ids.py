"""Names made by whoever needs one, so that every retry can carry the same."""

import secrets
import time


def new_id(prefix: str) -> str:
    """Unique everywhere, and sorted by the moment of its making: "job-018f3c5a2b7e9d41c0ffee42"."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def new_incarnation() -> int:
    """Names one life of a process: rises with every start of the same member."""
    return time.time_ns()


def new_seed() -> int:
    """A sampling seed for a request that brought none; fits OpenAI's signed 64 bits."""
    return secrets.randbits(63)
