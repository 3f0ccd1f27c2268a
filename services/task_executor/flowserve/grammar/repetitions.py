"""How much text a regular expression forces: counted repetitions multiply where they nest."""

import re

from services.task_executor.flowserve.grammar import limits

_COUNTS = re.compile(r"\{(\d{1,18})(?:,(\d{0,18}))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


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

    def append(self, size: int) -> None:
        self.current += size
        self.last = size

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
    index = 0
    while index < len(expression):
        character = expression[index]
        if counts := _COUNTS.match(expression, index) if character == "{" else None:
            index = counts.end()
            least, most = int(counts[1]), int(counts[2] or 0)
            if max(least, most) > limits.REPETITIONS_MAX:
                return (
                    f"the expression repeats something {max(least, most)} times, "
                    f"but may do so {limits.REPETITIONS_MAX} times"
                )
            groups[-1].repeat(least)
        else:
            index = _take(expression, index, groups)
        if groups[-1].size > limits.FORCED_CHARACTERS_MAX:
            return (
                f"the expression asks for at least {groups[-1].size} characters, "
                f"but may ask for {limits.FORCED_CHARACTERS_MAX}"
            )
    return ""


def _take(expression: str, index: int, groups: list[_Group]) -> int:
    """Count one piece of the expression and answer where the next begins."""
    character = expression[index]
    if character == "(":
        groups.append(_Group())
    elif character == ")" and len(groups) > 1:
        size = groups.pop().size
        groups[-1].append(size)
    elif character == "|":
        groups[-1].alternate()
    elif character in "*?":
        groups[-1].repeat(0)
    elif character == "[" and (found := _CLASS.match(expression, index)):
        groups[-1].append(1)
        return found.end()
    elif character != "+":
        groups[-1].append(1)
        return index + (2 if character == "\\" else 1)
    return index + 1
