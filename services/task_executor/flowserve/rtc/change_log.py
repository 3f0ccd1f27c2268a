"""What entered and left the prefix index, in order, merged into runs for the KV events."""

from services.task_executor.flowserve.messages import KvChange


class ChangeLog:
    def __init__(self) -> None:
        self._changes: list[KvChange] = []

    def stored(self, parent: bytes, identity: bytes) -> None:
        last = self._changes[-1] if self._changes else None
        if last is not None and last.stored and last.identities[-1] == parent:
            last.identities.append(identity)
        else:
            self._changes.append(KvChange(True, parent, [identity]))

    def removed(self, identity: bytes) -> None:
        last = self._changes[-1] if self._changes else None
        if last is not None and not last.stored:
            last.identities.append(identity)
        else:
            self._changes.append(KvChange(False, b"", [identity]))

    def drain(self) -> list[KvChange]:
        changes, self._changes = self._changes, []
        return changes
