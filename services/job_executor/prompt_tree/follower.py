"""One task executor's prefix index, rebuilt from its numbered events. Pure: time is passed in.

Events are applied strictly in order of their numbers. What arrives early waits, what is known
already is dropped; where a number stays missing, only the task executor's own index helps.
"""

from deepflow.v1 import events_pb2

# Events and heartbeats cross each other, and events are gathered before they leave.
PATIENCE_SECONDS = 0.5
# Beyond it what waits is dropped: a snapshot brings more than it could.
PENDING_EVENTS_MAX = 20_000


class Follower:
    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.seq = 0  # of the last event that `blocks` contains
        self.blocks: set[bytes] = set()
        self._pending: dict[int, events_pb2.KvEvent] = {}
        self._last_told = 0  # the highest number that is known to exist
        self._stuck_since: float | None = None

    def meet(self, incarnation: int) -> None:
        """A later incarnation holds nothing that the one before held."""
        if incarnation > self.incarnation:
            self.incarnation, self.seq, self.blocks = incarnation, 0, set()
            self._pending, self._last_told, self._stuck_since = {}, 0, None

    def note_events(self, events: events_pb2.KvEvents, now: float) -> None:
        self.meet(events.incarnation)
        if events.incarnation < self.incarnation:
            return
        for seq, event in enumerate(events.events, events.first_seq):
            if seq > self.seq:
                self._pending[seq] = event
        if events.events:
            self._note_told(events.first_seq + len(events.events) - 1, now)
        self._catch_up(now)
        if len(self._pending) > PENDING_EVENTS_MAX:
            self._pending.clear()

    def note_heartbeat(self, incarnation: int, last_seq: int, now: float) -> None:
        """The number shows a last event that was lost."""
        self.meet(incarnation)
        if incarnation == self.incarnation:
            self._note_told(last_seq, now)

    def adopt(self, incarnation: int, seq: int, blocks: set[bytes], now: float) -> bool:
        """Take a whole index that contains the events up to `seq`; False where we know more."""
        self.meet(incarnation)
        if incarnation < self.incarnation or seq <= self.seq:
            return False
        self.seq, self.blocks = seq, blocks
        self._pending = {number: it for number, it in self._pending.items() if number > seq}
        self._restart_patience(now)
        self._catch_up(now)
        return True

    @property
    def is_behind(self) -> bool:
        return self._last_told > self.seq

    def needs_index(self, now: float) -> bool:
        """Whether a missing event has been waited for long enough."""
        return self._stuck_since is not None and now - self._stuck_since >= PATIENCE_SECONDS

    def _note_told(self, seq: int, now: float) -> None:
        self._last_told = max(self._last_told, seq)
        if self.is_behind and self._stuck_since is None:
            self._stuck_since = now

    def _catch_up(self, now: float) -> None:
        before = self.seq
        while (event := self._pending.pop(self.seq + 1, None)) is not None:
            self._apply(event)
            self.seq += 1
        if self.seq > before:
            self._restart_patience(now)

    def _restart_patience(self, now: float) -> None:
        self._stuck_since = now if self.is_behind else None

    def _apply(self, event: events_pb2.KvEvent) -> None:
        kind = event.WhichOneof("kind")
        if kind == "stored":
            self.blocks.update(event.stored.identities)
        elif kind == "removed":
            self.blocks.difference_update(event.removed.identities)
        elif kind == "cleared":
            self.blocks = set()
