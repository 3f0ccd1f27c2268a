"""Whether copies between tiers stand still: a disk that answers nothing holds up nobody for long.

What waits for a copy computes instead, or takes the room of others, until copies end again.
"""

# A copy is of one block: no disk that works needs so long for it.
PATIENCE_SECONDS = 2.0


class CopyWatch:
    def __init__(self) -> None:
        self.is_stalled = False
        self._since: float | None = None  # the last sign of life, where copies are under way

    @property
    def stalls_at(self) -> float | None:
        """When to look again; None where nothing new would be seen."""
        if self._since is None or self.is_stalled:
            return None
        return self._since + PATIENCE_SECONDS

    def look(self, now: float, *, num_copying: int) -> None:
        if not num_copying:
            self._since, self.is_stalled = None, False
        elif self._since is None:
            self._since = now
        elif now >= self._since + PATIENCE_SECONDS:
            self.is_stalled = True

    def ended(self, now: float) -> None:
        """A copy did, well or not."""
        self._since, self.is_stalled = now, False
