"""The JSON object of one call, read while it is written."""

import json
import re
from enum import Enum, auto

_SPACE = " \t\r\n"
_ARGUMENT_KEYS = ("arguments", "parameters")
# Keys that a call may begin with; with any other it is somebody's plain JSON.
_KEYS = ("name", *_ARGUMENT_KEYS, "id", "type")
# What JSON may hold outside its strings; anything else means that this is no JSON.
_OUTSIDE_STRINGS = frozenset(_SPACE + "{}[],:+-.0123456789eEtrufalsn")
_SCALAR_BEGINNINGS = frozenset("-0123456789tfn")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class _At(Enum):
    BEGINNING = auto()
    FIRST_KEY = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    AFTER_VALUE = auto()
    END = auto()
    BROKEN = auto()


class CallObject:
    """Knows the name once it is complete, and gives the arguments out as they come.

    It checks the object around them, and of the arguments only where they end: what a model
    writes there is the caller's to judge.
    """

    __slots__ = (
        "_at",
        "_depth",
        "_is_argument",
        "_is_escaped",
        "_is_in_string",
        "_key",
        "_new",
        "_value",
        "has_all_arguments",
        "has_arguments",
        "name",
    )

    def __init__(self) -> None:
        self._at = _At.BEGINNING
        self._key = ""
        self._value: list[str] = []  # of the name only
        self._new: list[str] = []
        self._depth = 0
        self._is_argument = self._is_in_string = self._is_escaped = False
        self.name = ""
        self.has_arguments = self.has_all_arguments = False

    @property
    def is_complete(self) -> bool:
        return self._at is _At.END

    @property
    def is_broken(self) -> bool:
        return self._at is _At.BROKEN

    def push(self, text: str) -> int:
        """How many characters belong to the object; fewer than all where it ends or breaks."""
        for position, character in enumerate(text):
            if self._at is _At.IN_VALUE:
                belongs = self._take_in_value(character)
            else:
                belongs = self._take(character)
            if not belongs:
                return position
            if self._at is _At.END:
                return position + 1
        return len(text)

    def take_arguments(self) -> str:
        """What came of the arguments since the last call."""
        text = "".join(self._new)
        self._new.clear()
        return text

    def _take(self, character: str) -> bool:
        at = self._at
        if at is _At.IN_KEY:
            return self._take_in_key(character)
        if character in _SPACE:
            return True
        if at is _At.VALUE:
            return self._begin_value(character)
        following = _FOLLOWING.get((at, character))
        if following is None:
            return self._break()
        self._at = following
        if following is _At.IN_KEY:
            self._key, self._is_escaped = character, False
        return True

    def _take_in_key(self, character: str) -> bool:
        self._key += character
        if character == '"' and not self._is_escaped:
            self._at = _At.COLON
        self._is_escaped = character == "\\" and not self._is_escaped
        return True

    def _begin_value(self, character: str) -> bool:
        if character not in '{["' and character not in _SCALAR_BEGINNINGS:
            return self._break()
        key = _read_string(self._key)
        if key not in _KEYS and not (self.name and self.has_arguments):
            return self._break()
        self._is_argument = key in _ARGUMENT_KEYS and not self.has_arguments
        self.has_arguments = self.has_arguments or self._is_argument
        self._at = _At.IN_VALUE
        self._depth = 0
        self._is_in_string = self._is_escaped = False
        return self._take_in_value(character)

    def _take_in_value(self, character: str) -> bool:
        if self._is_in_string:
            self._keep(character)
            self._take_in_string(character)
            return True
        if self._depth == 0 and self._value_has_begun_as_scalar(character):
            self._end_value()
            return self._take(character)
        if character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif character not in _OUTSIDE_STRINGS:
            return self._break()
        self._keep(character)
        if character in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._end_value()
        return True

    def _take_in_string(self, character: str) -> None:
        if character == '"' and not self._is_escaped:
            self._is_in_string = False
            if self._depth == 0:
                self._end_value()
        self._is_escaped = character == "\\" and not self._is_escaped

    def _value_has_begun_as_scalar(self, character: str) -> bool:
        """At depth 0 and outside strings only a number or a word is under way; this ends it."""
        return character in ",}]" or character in _SPACE

    def _keep(self, character: str) -> None:
        if self._is_argument:
            self._new.append(character)
        elif not self.name:
            self._value.append(character)

    def _end_value(self) -> None:
        self._at = _At.AFTER_VALUE
        if self._is_argument:
            self.has_all_arguments = True
        elif not self.name and _read_string(self._key) == "name":
            self.name = _read_string("".join(self._value)) or ""
            if not _TOOL_NAME.fullmatch(self.name):
                self.name = ""
                self._break()
        self._value.clear()
        self._is_argument = False

    def _break(self) -> bool:
        self._at = _At.BROKEN
        return False


_FOLLOWING = {
    (_At.BEGINNING, "{"): _At.FIRST_KEY,
    (_At.FIRST_KEY, "}"): _At.END,
    (_At.FIRST_KEY, '"'): _At.IN_KEY,
    (_At.KEY, '"'): _At.IN_KEY,
    (_At.COLON, ":"): _At.VALUE,
    (_At.AFTER_VALUE, ","): _At.KEY,
    (_At.AFTER_VALUE, "}"): _At.END,
}


def _read_string(text: str) -> str | None:
    """The string that a JSON text stands for; None where it is none."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
