"""{"name": …, "parameters": {…}}, several between semicolons, where the answer begins."""

from collections.abc import Collection

from services.job_executor.tools.parser import CallParser

TAG = "<|python_tag|>"
SEPARATOR = ";"


class Llama3Parser(CallParser):
    """Nothing marks a call but its form, so only the names of the given tools make one."""

    __slots__ = ("_is_text", "_names")

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = frozenset(names)
        self._is_text = False  # from here on

    def _outside(self) -> bool:
        if self._is_text:
            self._text(self._buffer)
            self._buffer = ""
            return False
        rest = self._buffer.lstrip()
        lead = SEPARATOR if self._num_calls else TAG
        if len(rest) < len(lead) and lead.startswith(rest):
            return False
        if rest.startswith(lead):
            rest = rest.removeprefix(lead).lstrip()
        elif self._num_calls:
            return self._be_text()
        if not rest:
            return False
        if not rest.startswith("{"):
            return self._be_text()
        self._begin_object(self._buffer.removesuffix(rest))
        self._buffer = rest
        return True

    def _be_text(self) -> bool:
        self._is_text = True
        return True

    def _refused(self, held: str) -> None:
        self._is_text, self._buffer = True, held + self._buffer

    def _after(self) -> None:
        """What follows decides whether it was the last call."""

    def _rest(self) -> str:
        # Undecided after a call are only blanks and a separator.
        return "" if self._num_calls and not self._is_text else self._buffer

    def _accepts(self, name: str) -> bool:
        return name in self._names

    def _may_lack_arguments(self) -> bool:
        return False
