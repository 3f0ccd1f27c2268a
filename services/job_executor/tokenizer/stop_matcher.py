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
        end = self._find(text)
        if end:
            self._held = ""
            return text[: end - len(self.matched)]
        keep = len(text) - self._num_undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """The text ended: what was held back is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int:
        """Set `matched` and answer where it ends; 0 where no stop string is complete."""
        ends = [
            (position + len(stop), -len(stop), stop)
            for stop in self._stops
            if (position := text.find(stop)) >= 0
        ]
        if not ends:
            return 0
        end, _, self.matched = min(ends)
        return end

    def _num_undecided(self, text: str) -> int:
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
