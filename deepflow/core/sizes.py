"""Amounts of memory as people write and read them: "2GiB", "1.5 GiB"."""

import math
import re
from collections.abc import Callable
from fractions import Fraction

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
# Powers of 1024 with an i, of 1000 without, as everywhere else.
_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": KIB,
    "m": 10**6,
    "mb": 10**6,
    "mib": MIB,
    "g": 10**9,
    "gb": 10**9,
    "gib": GIB,
    "t": 10**12,
    "tb": 10**12,
    "tib": TIB,
}
# Of what somebody wrote, in the sentence that says that it is wrong.
_SHOWN_CHARACTERS_MAX = 64
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", re.ASCII)


def parse_bytes(text: str) -> int:
    """Raises ValueError that says what would be right."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNITS:
        shown = text[:_SHOWN_CHARACTERS_MAX]
        raise ValueError(
            f"{shown!r} is no amount of memory: write 2GiB, 512MiB or a number of bytes"
        )
    return int(Fraction(match[1]) * _UNITS[match[2]])


def format_bytes(count: int) -> str:
    """Two or three digits that matter, rounded to the nearest: 1.50 GiB."""
    return _format(count, round)


def format_at_most(count: int) -> str:
    """Rounded down: who asks for as much as this says gets no more than `count`."""
    return _format(count, math.floor)


def format_at_least(count: int) -> str:
    """Rounded up."""
    return _format(count, math.ceil)


def _format(count: int, rounded: Callable[[Fraction], int]) -> str:
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            value = Fraction(count, unit)
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{rounded(value * 10**digits) / 10**digits:.{digits}f} {name}"
    return f"{count} bytes"
