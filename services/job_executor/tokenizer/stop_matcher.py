"""Stop strings in a text that arrives in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Cuts a text before the stop string that is complete first (of those, the longest one).

    What may still become a stop string is held back: the longest end of the text so far that
    begins one. Where pieces are cut makes no difference to the answer.
    """

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = ""  # the stop string that ended the text

    def push(self, piece: str) -> str:
        """The text that is sure now. Once `matched` is set, nothing more comes out."""
        if self.matched or not piece:
            return ""
        text = self._held + piece
        end = self._find(text, len(self._held))
        if end:
            self._held = ""
            return text[: end - len(self.matched)]
        return self._hold_back(text)

    def finish(self, piece: str) -> str:
        """The last piece; what is held back then is no stop string after all."""
        text = self.push(piece)
        held, self._held = self._held, ""
        return text + held

    def _hold_back(self, text: str) -> str:
        """What of a text without a stop string is sure; the rest waits."""
        keep = len(text) - self._num_undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def _find(self, text: str, known: int) -> int:
        """Set `matched` and answer where it ends; 0 where no stop string is complete.

        One that ends within the first `known` characters was there before, and did not count.
        """
        ends = [
            (position + len(stop), -len(stop), stop)
            for stop in self._stops
            if (position := text.find(stop, max(0, known + 1 - len(stop)))) >= 0
        ]
        if not ends:
            return 0
        end, _, self.matched = min(ends)
        return end

    def _num_undecided(self, text: str) -> int:
        return max((_overlap(text, stop) for stop in self._stops), default=0)


class PatientStopMatcher(StopMatcher):
    """Lets the stop strings pass that are complete before the answer has `min_tokens` tokens."""

    __slots__ = ("_num_tokens_due",)

    def __init__(self, stops: Sequence[str], min_tokens: int) -> None:
        super().__init__(stops)
        self._num_tokens_due = min_tokens

    def push(self, piece: str) -> str:
        """Called once a token, also where it has no text yet."""
        self._num_tokens_due -= 1
        if self._num_tokens_due > 0:
            return self._hold_back(self._held + piece)
        return super().push(piece)

    def finish(self, piece: str) -> str:
        self._num_tokens_due += 1  # what is left belongs to the last token
        return super().finish(piece)


def new_stop_matcher(stops: Sequence[str], min_tokens: int) -> StopMatcher | None:
    """None where nothing is to be looked for."""
    if not stops:
        return None
    return PatientStopMatcher(stops, min_tokens) if min_tokens > 1 else StopMatcher(stops)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
