"""<tool_call>{"name": …, "arguments": {…}}</tool_call>, any number, between texts."""

from services.job_executor.tools.parser import CallParser, leading_blanks, undecided_from

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """Blanks around calls are part of the layout, not of the text."""

    __slots__ = ("_has_text", "_is_unclosed")

    def __init__(self) -> None:
        super().__init__()
        self._has_text = False  # since the beginning or the last call
        self._is_unclosed = False  # a call is over, its closing tag is due

    def _outside(self) -> bool:
        if self._is_unclosed and not self._close():
            return False
        start = self._buffer.find(OPEN)
        if start < 0:
            self._give_text(undecided_from(self._buffer, OPEN))
            return False
        self._give_text(start)
        tag = leading_blanks(self._buffer) + OPEN
        self._buffer = self._buffer.removeprefix(tag)
        self._begin_object(tag)
        return True

    def _give_text(self, end: int) -> None:
        """Give out the buffer up to `end`, unless it is blank and a call may follow."""
        text = self._buffer[:end]
        if self._has_text or text.strip():
            self._text(text)
            self._has_text, self._buffer = True, self._buffer[end:]

    def _close(self) -> bool:
        """Take the closing tag, where there is one; False: that cannot be told yet."""
        rest = self._buffer.lstrip()
        if len(rest) < len(CLOSE) and CLOSE.startswith(rest):
            return False
        self._is_unclosed = False
        if rest.startswith(CLOSE):
            self._buffer = rest.removeprefix(CLOSE)
        return True

    def _refused(self, held: str) -> None:
        # The tag is text; behind it there may be another one.
        end = held.index(OPEN) + len(OPEN)
        self._text(held[:end])
        self._has_text, self._buffer = True, held[end:] + self._buffer

    def _after(self) -> None:
        self._has_text, self._is_unclosed = False, True

    def _rest(self) -> str:
        is_layout = self._is_unclosed or not self._buffer.strip()
        return "" if self._num_calls and is_layout else self._buffer

    def _accepts(self, name: str) -> bool:
        return bool(name)

    def _may_lack_arguments(self) -> bool:
        return True  # the tags say that it is a call
