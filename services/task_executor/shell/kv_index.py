"""What the engine's prefix index holds, followed by its changes, for who wants it as a whole."""

from collections.abc import Iterator, Sequence

from deepflow.v1 import cache_pb2, events_pb2


class KvIndex:
    """The shell's own replica: reading it costs the engine nothing."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes] = {}  # by identity, in the order they were stored

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, identity: bytes) -> bool:
        return identity in self._parents

    def apply(self, event: events_pb2.KvEvent) -> None:
        kind = event.WhichOneof("kind")
        if kind == "stored":
            parent = event.stored.parent
            for identity in event.stored.identities:
                self._parents[identity] = parent
                parent = identity
        elif kind == "removed":
            for identity in event.removed.identities:
                self._parents.pop(identity, None)
        elif kind == "cleared":
            self._parents = {}

    def copy(self) -> tuple[list[bytes], list[bytes]]:
        """Identities and their parents as they are now, for a reading that takes a while."""
        return list(self._parents), list(self._parents.values())


def chunks(
    index: tuple[Sequence[bytes], Sequence[bytes]],
    *,
    incarnation: int,
    seq: int,
    blocks_max: int,
) -> Iterator[cache_pb2.KvIndexChunk]:
    """A copy of an index as messages of at most `blocks_max` blocks; an empty one is one chunk."""
    identities, parents = index
    count = max(1, -(-len(identities) // blocks_max))
    for number in range(count):
        at = slice(number * blocks_max, (number + 1) * blocks_max)
        yield cache_pb2.KvIndexChunk(
            incarnation=incarnation,
            seq=seq,
            number=number,
            count=count,
            runs=_runs(identities[at], parents[at]),
        )


def _runs(
    identities: Sequence[bytes], parents: Sequence[bytes]
) -> Iterator[events_pb2.BlocksStored]:
    """Blocks that follow one another share one run."""
    first = 0
    for end in range(1, len(identities) + 1):
        if end == len(identities) or parents[end] != identities[end - 1]:
            yield events_pb2.BlocksStored(parent=parents[first], identities=identities[first:end])
            first = end
