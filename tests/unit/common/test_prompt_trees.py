"""Task executors, a bus that loses, repeats and reorders, and job executors that must agree.

Whatever happened before: once it is quiet, every tree is the task executors' own index.
"""

from collections.abc import Set

from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from deepflow.v1 import cache_pb2, events_pb2
from services.job_executor.prompt_tree.follower import PATIENCE_SECONDS
from services.job_executor.prompt_tree.index_reader import Assembly, Index, assemble_newest
from services.job_executor.prompt_tree.tree import PromptTree
from services.task_executor.flowserve.messages import KvChange
from services.task_executor.shell.kv_events import KvEventPublisher

NAMES = ("te-1", "te-2")
CHUNK_BLOCKS = 3


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.incarnations = dict.fromkeys(NAMES, 1)
        self.publishers = {name: self._publisher(name) for name in NAMES}
        self.under_way: list[events_pb2.KvEvents] = []
        self.sent: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.trees = [PromptTree(), PromptTree()]
        self.stored: dict[str, dict[int, cache_pb2.KvIndexChunk]] = {name: {} for name in NAMES}
        self.readings: list[tuple[int, str, Index]] = []  # indexes on their way to a tree
        self.show_view(0)
        self.show_view(1)

    def _publisher(self, name: str) -> KvEventPublisher:
        return KvEventPublisher(Bus(ServiceConfig(), name), name, self.incarnations[name])

    def store(self, name: str, first: int, count: int, heard_by: Set[int]) -> None:
        run = [identity(number) for number in range(first, first + count)]
        self.publishers[name].add([KvChange(True, b"", run)])
        stored = events_pb2.BlocksStored(identities=run)
        self._send(name, events_pb2.KvEvent(stored=stored), heard_by)

    def remove(self, name: str, first: int, count: int, heard_by: Set[int]) -> None:
        run = [identity(number) for number in range(first, first + count)]
        self.publishers[name].add([KvChange(False, b"", run)])
        removed = events_pb2.BlocksRemoved(identities=run)
        self._send(name, events_pb2.KvEvent(removed=removed), heard_by)

    def clear(self, name: str, heard_by: Set[int]) -> None:
        self.publishers[name].cleared()
        self._send(name, events_pb2.KvEvent(cleared=True), heard_by)

    def restart(self, name: str) -> None:
        """Nothing but its id is left; the others hear of it when they hear of it."""
        self.incarnations[name] += 1
        self.publishers[name] = self._publisher(name)

    def _send(self, name: str, event: events_pb2.KvEvent, heard_by: Set[int]) -> None:
        """Some hear it at once; it stays under way, to come late, twice or never."""
        message = events_pb2.KvEvents(
            task_executor_id=name,
            incarnation=self.incarnations[name],
            first_seq=self.publishers[name].last_seq,
            events=[event],
        )
        for tree in heard_by:
            self.trees[tree].note_events(message, self.now)
        self.under_way.append(message)

    def deliver(self, at: int, tree: int, *, keep: bool) -> None:
        """In any order, to one of the trees or twice to it; what is not kept may never come."""
        if not self.under_way:
            return
        at %= len(self.under_way)
        self.trees[tree].note_events(self.under_way[at], self.now)
        if not keep:
            del self.under_way[at]

    def lose(self, at: int) -> None:
        if self.under_way:
            del self.under_way[at % len(self.under_way)]

    def beat(self, name: str, tree: int) -> None:
        beat = events_pb2.Heartbeat(
            id=name,
            incarnation=self.incarnations[name],
            last_kv_seq=self.publishers[name].last_seq,
        )
        self.trees[tree].note_heartbeat(beat, self.now)

    def show_view(self, tree: int) -> None:
        self.trees[tree].follow(self.incarnations)

    def forget(self, tree: int, name: str) -> None:
        """A view without it, as after a failure; the next one brings it back."""
        self.trees[tree].follow(
            {other: it for other, it in self.incarnations.items() if other != name}
        )

    def begin_reading(self, name: str, tree: int) -> None:
        assembly = Assembly()
        for chunk in self.publishers[name].read_index(CHUNK_BLOCKS):
            assembly.add(chunk)
        self.readings.append((tree, name, assembly.finish()))

    def end_reading(self, at: int) -> None:
        if self.readings:
            self._adopt(*self.readings.pop(at % len(self.readings)))

    def _adopt(self, tree: int, name: str, index: Index) -> None:
        if follower := self.trees[tree].get(name):
            follower.adopt(index.incarnation, index.seq, set(index.blocks), self.now)

    def copy_to_store(self, name: str, num_chunks: int) -> None:
        """Perhaps only the first chunks: the writer died on the way."""
        for chunk in list(self.publishers[name].read_index(CHUNK_BLOCKS))[:num_chunks]:
            self.stored[name][chunk.number] = chunk

    def restart_tree(self, tree: int) -> None:
        """A cold job executor: what the store has, then events."""
        self.trees[tree] = PromptTree()
        self.show_view(tree)
        for name in NAMES:
            if index := assemble_newest(self.stored[name].values()):
                self._adopt(tree, name, index)

    def settle(self) -> None:
        """Nothing happens any more but heartbeats, and readings by whoever misses something."""
        while self.readings:
            self.end_reading(0)
        for number, _ in enumerate(self.trees):
            self.show_view(number)
            for name in NAMES:
                self.beat(name, number)
        self.now += 2 * PATIENCE_SECONDS
        for number, tree in enumerate(self.trees):
            for name in tree.in_need(self.now):
                self.begin_reading(name, number)
        while self.readings:
            self.end_reading(0)


NAME = st.sampled_from(NAMES)
TREE = st.integers(0, 1)
BLOCK = st.integers(0, 12)
COUNT = st.integers(1, 4)
HEARD_BY = st.sets(TREE) | st.just({0, 1})
PLACE = st.integers(0, 30)
STEP = st.one_of(
    st.tuples(st.just("store"), NAME, BLOCK, COUNT, HEARD_BY),
    st.tuples(st.just("store"), NAME, BLOCK, COUNT, HEARD_BY),
    st.tuples(st.just("remove"), NAME, BLOCK, COUNT, HEARD_BY),
    st.tuples(st.just("deliver"), PLACE, TREE, st.booleans()),
    st.tuples(st.just("lose"), PLACE),
    st.tuples(st.just("beat"), NAME, TREE),
    st.tuples(st.just("clear"), NAME, HEARD_BY),
    st.tuples(st.just("restart"), NAME),
    st.tuples(st.just("show_view"), TREE),
    st.tuples(st.just("forget"), TREE, NAME),
    st.tuples(st.just("begin_reading"), NAME, TREE),
    st.tuples(st.just("end_reading"), PLACE),
    st.tuples(st.just("copy_to_store"), NAME, st.integers(0, 4)),
    st.tuples(st.just("restart_tree"), TREE),
)


# Of one task executor, with much loss: what is left of a former life is met more often.
HEARD_BY_FEW = st.sets(TREE, max_size=1)
LIVES = st.one_of(
    st.tuples(st.just("store"), st.just("te-1"), BLOCK, COUNT, HEARD_BY_FEW),
    st.tuples(st.just("store"), st.just("te-1"), BLOCK, COUNT, HEARD_BY_FEW),
    st.tuples(st.just("restart"), st.just("te-1")),
    st.tuples(st.just("begin_reading"), st.just("te-1"), TREE),
    st.tuples(st.just("end_reading"), PLACE),
    st.tuples(st.just("deliver"), PLACE, TREE, st.booleans()),
    st.tuples(st.just("beat"), st.just("te-1"), TREE),
)


@settings(max_examples=800, deadline=None)
@given(st.lists(STEP, max_size=60) | st.lists(LIVES, min_size=4, max_size=14), st.booleans())
def test_once_quiet_every_tree_is_what_the_task_executors_hold(
    steps: list[tuple[object, ...]], late_mail: bool
) -> None:
    world = World()
    for name, *arguments in steps:
        if name == "deliver":
            place, tree, keep = arguments
            world.deliver(place, tree, keep=keep)  # type: ignore[arg-type]
        else:
            getattr(world, str(name))(*arguments)
        world.now += 0.01
    world.settle()
    if late_mail:  # what was still under way may come at the very end, and changes nothing
        while world.under_way:
            world.deliver(0, 0, keep=True)
            world.deliver(0, 1, keep=False)
    for tree in world.trees:
        assert set(tree) == set(NAMES)
        for name in NAMES:
            assert tree.blocks_of(name) == set(world.publishers[name].index.copy()[0])


@settings(deadline=None)
@given(st.lists(STEP, max_size=40))
def test_a_stored_copy_is_whole_or_nothing(steps: list[tuple[object, ...]]) -> None:
    """Torn writings, chunks of longer ones left behind: never a mixture."""
    world, written = World(), []
    for name, *arguments in steps:
        if name in ("store", "remove", "copy_to_store"):
            getattr(world, str(name))(*arguments)
            blocks = set(world.publishers["te-1"].index.copy()[0])
            written.append((world.publishers["te-1"].last_seq, blocks))
    index = assemble_newest(world.stored["te-1"].values())
    assert index is None or (index.seq, index.blocks) in written
