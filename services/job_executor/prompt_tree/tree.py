"""The global prompt tree: for every task executor the identities of the blocks that it holds.

An identity names the whole path from the start of a prompt to its block, so the tree needs no
nodes: one flat set a task executor, which starts and goes with it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from deepflow.v1 import events_pb2
from services.job_executor.prompt_tree.follower import Follower


class PromptTree:
    """Only those that the view names are followed: nobody else can make it grow."""

    def __init__(self) -> None:
        self._followers: dict[str, Follower] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._followers)

    @property
    def num_blocks(self) -> int:
        return sum(len(follower.blocks) for follower in self._followers.values())

    def follow(self, incarnations: Mapping[str, int]) -> list[str]:
        """Follow exactly these task executors from now on; answers those that are new."""
        for gone in self._followers.keys() - incarnations.keys():
            del self._followers[gone]
        fresh = [name for name in incarnations if name not in self._followers]
        for name, incarnation in incarnations.items():
            self._followers.setdefault(name, Follower(incarnation)).meet(incarnation)
        return fresh

    def get(self, task_executor_id: str) -> Follower | None:
        return self._followers.get(task_executor_id)

    def blocks_of(self, task_executor_id: str) -> AbstractSet[bytes]:
        follower = self._followers.get(task_executor_id)
        return follower.blocks if follower is not None else frozenset()

    def holders(self, identity: bytes) -> set[str]:
        """The task executors that hold this block."""
        return {name for name, it in self._followers.items() if identity in it.blocks}

    def note_events(self, events: events_pb2.KvEvents, now: float) -> None:
        if follower := self._followers.get(events.task_executor_id):
            follower.note_events(events, now)

    def note_heartbeat(self, beat: events_pb2.Heartbeat, now: float) -> None:
        if follower := self._followers.get(beat.id):
            follower.note_heartbeat(beat.incarnation, beat.last_kv_seq, now)

    def in_need(self, now: float) -> Iterable[str]:
        """Those of which events are missing for good."""
        return [name for name, it in self._followers.items() if it.needs_index(now)]

    def match(self, task_executor_id: str, identities: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks it holds."""
        return matched_blocks(self.blocks_of(task_executor_id), identities)


def matched_blocks(held: AbstractSet[bytes], identities: Sequence[bytes]) -> int:
    """Bisected: who holds a block holds what is before it, since a prefix is evicted from its end.

    The rare exception costs a miss or a wrong hope, never a wrong answer.
    """
    if not identities or identities[0] not in held:
        return 0
    low, high = 1, len(identities)
    while low < high:
        middle = (low + high + 1) // 2
        if identities[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
