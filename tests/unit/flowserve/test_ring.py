import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import (
    Cancel,
    Finished,
    KvChange,
    Load,
    Progress,
    StepOutput,
    Stop,
    Submit,
    Unload,
)
from services.task_executor.flowserve.ring import (
    HEADER_BYTES,
    RecordTooLarge,
    Ring,
    RingFull,
    RingWriter,
    decode_from_engine,
    decode_to_engine,
    encode,
)

TIMEOUT_SECONDS = 60.0

# Sends everything it receives back, in another process.
ECHO = """
import sys
from services.task_executor.flowserve.ring import Ring
inbox, outbox = (Ring.open([int(fd) for fd in text.split(",")]) for text in sys.argv[1:3])
reader, writer, missing = inbox.reader(), outbox.writer(), int(sys.argv[3])
while missing:
    assert reader.wait(60.0)
    for record in reader.drain():
        writer.send(record, 60.0)
        missing -= 1
"""


def send_all(writer: RingWriter, records: list[bytes]) -> None:
    for record in records:
        writer.send(record, TIMEOUT_SECONDS)


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.create(64)
    yield ring
    ring.close()


def test_records_arrive_in_order_and_once(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader()
    assert reader.drain() == [] and not reader.wait(0)
    for record in (b"one", b"", b"three"):
        writer.send(record)
    assert reader.wait(0)
    assert reader.drain() == [b"one", b"", b"three"]
    assert reader.drain() == [] and not reader.wait(0)


@given(records=st.lists(st.binary(max_size=60), max_size=60), data=st.data())
@settings(deadline=None)
def test_wrapping_around_changes_nothing(records: list[bytes], data: st.DataObject) -> None:
    ring = Ring.create(64)
    writer, reader = ring.writer(), ring.reader()
    received: list[bytes] = []
    for record in records:
        try:
            writer.send(record, timeout=0)
        except RingFull:
            received += reader.drain()
            writer.send(record, timeout=0)
        if data.draw(st.booleans()):
            received += reader.drain()
    assert received + reader.drain() == records
    ring.close()


def test_a_full_ring_says_so_and_writes_nothing(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader()
    writer.send(b"x" * 40)
    with pytest.raises(RingFull, match="room for 20 of 24 bytes"):
        writer.send(b"y" * 20, timeout=0.01)
    assert reader.drain() == [b"x" * 40]
    writer.send(b"y" * 20, timeout=0)
    assert reader.drain() == [b"y" * 20]


def test_a_record_larger_than_the_ring_is_refused(ring: Ring) -> None:
    with pytest.raises(RecordTooLarge, match="61 bytes does not fit a ring of 64"):
        ring.writer().send(b"x" * 61)
    ring.writer().send(b"x" * 60, timeout=0)


def test_a_waiting_writer_goes_on_when_there_is_room(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader()
    writer.send(b"x" * 60)
    thread = threading.Thread(target=writer.send, args=(b"y" * 60, TIMEOUT_SECONDS))
    thread.start()
    assert reader.drain() == [b"x" * 60]
    thread.join(TIMEOUT_SECONDS)
    assert reader.drain() == [b"y" * 60]


def test_capacity_must_hold_a_record() -> None:
    with pytest.raises(ValueError, match="capacity is 4 bytes"):
        Ring.create(4)
    with pytest.raises(ValueError, match="three file descriptors"):
        Ring.open([1, 2])


def test_nothing_is_left_behind() -> None:
    descriptors = Path("/proc/self/fd")
    before = rings_mapped()
    ring = Ring.create()
    ring.writer().send(b"record")
    links = [(descriptors / str(fd)) for fd in ring.fds]
    assert links[0].readlink() == Path("/memfd:deepflow-ring (deleted)")
    assert rings_mapped() - before
    ring.close()
    assert not [link for link in links if link.is_symlink()]
    assert rings_mapped() <= before


def rings_mapped() -> set[str]:
    """By address: others of this process may come to their end meanwhile."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "deepflow-ring" in line}


@pytest.mark.parametrize("capacity", [1000, 1 << 16])
def test_two_processes_and_random_sizes(capacity: int) -> None:
    dice = random.Random(capacity)
    sent = [dice.randbytes(dice.randrange(capacity // 3)) for _ in range(400)]
    inbox, outbox = Ring.create(capacity), Ring.create(capacity)
    names = [",".join(map(str, ring.fds)) for ring in (inbox, outbox)]
    process = subprocess.Popen(
        [sys.executable, "-c", ECHO, *names, str(len(sent))],
        pass_fds=[*inbox.fds, *outbox.fds],
    )
    writer, reader = inbox.writer(), outbox.reader()
    sender = threading.Thread(target=send_all, args=(writer, sent))
    sender.start()
    received: list[bytes] = []
    while len(received) < len(sent):
        assert reader.wait(TIMEOUT_SECONDS)
        received += reader.drain()
    sender.join(TIMEOUT_SECONDS)
    assert process.wait(TIMEOUT_SECONDS) == 0
    assert received == sent
    inbox.close()
    outbox.close()


def test_the_step_clock_shows_only_whole_steps(ring: Ring) -> None:
    assert ring.step_clock.read() is None
    ring.step_clock.begin(7, 12.5, 0.25)
    step = ring.step_clock.read()
    assert step is not None
    assert (step.step, step.started_seconds, step.predicted_seconds) == (7, 12.5, 0.25)
    ring.memory[0] ^= 1  # a write caught half-way
    assert ring.step_clock.read() is None
    ring.step_clock.end()
    assert ring.step_clock.read() is None


def test_the_step_clock_is_out_of_the_records_way(ring: Ring) -> None:
    ring.step_clock.begin(1, 1.0, 1.0)
    before = ring.memory[:HEADER_BYTES]
    writer, reader = ring.writer(), ring.reader()
    for _ in range(5):
        writer.send(b"x" * 50)
        reader.drain()
    assert ring.memory[:HEADER_BYTES] == before


@pytest.mark.parametrize(
    "message",
    [
        Load("demo", "/models/demo", "cpu", "r1", {"kv_blocks": 9}),
        Unload(),
        Submit(1, [1, 2], SamplingParams(4, seed=2**64 - 1), [3], 2, b"salt", -1),
        Cancel([1, 2]),
        Stop(),
    ],
)
def test_what_the_shell_says_arrives_as_it_was(message: Submit | Cancel) -> None:
    assert decode_to_engine(encode(message)) == message


def test_what_the_engine_says_arrives_as_it_was() -> None:
    finished = [Finished(1, "length", 2, 1, 0)]
    changes = [KvChange(True, b"", [b"i" * 16])]
    step = StepOutput(3, 0.5, [1], [1], [0], [5], [-0.5], finished, changes, 0, 0, 9)
    assert decode_from_engine(encode(step)) == step
    assert decode_from_engine(encode(Progress("warm_up"))) == Progress("warm_up")
