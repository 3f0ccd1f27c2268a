"""How much text a regular expression forces: counted repetitions multiply where they nest."""

import re

from services.task_executor.flowserve.grammar import limits

_PIECE = re.compile(
    r"""(?P<plain>[^\\()\[\]{}|*?+]+)
    | (?P<single>\\.|\[\^?\]?(?:\\.|[^\]\\])*\])
    | \{(?P<least>\d{1,18})(?:,(?P<most>\d{0,18}))?\}
    | (?P<sign>.)""",
    re.DOTALL | re.VERBOSE,
)


class _Group:
    """Characters that the longest alternative of a group needs at least."""

    __slots__ = ("current", "last", "longest")

    def __init__(self) -> None:
        self.longest = 0  # of the alternatives before this one
        self.current = 0
        self.last = 0  # of what a repetition would repeat

    @property
    def size(self) -> int:
        return max(self.longest, self.current)

    def append(self, size: int, *, last: int) -> None:
        self.current += size
        self.last = last

    def repeat(self, least: int) -> None:
        self.current += self.last * (least - 1)
        self.last *= least

    def alternate(self) -> None:
        self.longest, self.current, self.last = self.size, 0, 0


def find_repetition_fault(expression: str) -> str:
    """A sentence for the caller; empty where nothing is repeated too often.

    No judge of syntax: what is not understood counts as one character.
    """
    groups = [_Group()]
    for piece in _PIECE.finditer(expression):
        if piece["least"]:
            least, most = int(piece["least"]), int(piece["most"] or 0)
            if max(least, most) > limits.REPETITIONS_MAX:
                return (
                    f"the expression repeats something {max(least, most)} times, "
                    f"but may do so {limits.REPETITIONS_MAX} times"
                )
            groups[-1].repeat(least)
        elif piece["plain"]:
            groups[-1].append(len(piece["plain"]), last=1)
        else:
            _take(piece["sign"] or "", groups)
        if groups[-1].size > limits.FORCED_CHARACTERS_MAX:
            return (
                f"the expression asks for at least {groups[-1].size} characters, "
                f"but may ask for {limits.FORCED_CHARACTERS_MAX}"
            )
    return ""


def _take(sign: str, groups: list[_Group]) -> None:
    """Empty for an escaped character or a class, which are one character each."""
    if sign == "(":
        groups.append(_Group())
    elif sign == ")" and len(groups) > 1:
        size = groups.pop().size
        groups[-1].append(size, last=size)
    elif sign == "|":
        groups[-1].alternate()
    elif sign and sign in "*?":
        groups[-1].repeat(0)
    elif sign != "+":
        groups[-1].append(1, last=1)
