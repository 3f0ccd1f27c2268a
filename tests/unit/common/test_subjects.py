import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from deepflow.subjects import is_by_its_speaker, kind_word
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types

WORD = st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True)
KIND = st.sampled_from([value for value in types.MemberKind.values() if value])


@given(KIND, WORD)
def test_what_a_member_says_of_itself_is_heard(kind: types.MemberKind.ValueType, id: str) -> None:
    beat = events_pb2.Heartbeat(id=id, member=cluster_pb2.Member(id=id, kind=kind))
    assert is_by_its_speaker(f"deepflow.heartbeat.{kind_word(kind)}.{id}", beat)
    assert is_by_its_speaker(f"deepflow.kv.{id}", events_pb2.KvEvents(task_executor_id=id))


@given(KIND, KIND, WORD, WORD)
def test_what_it_says_in_anothers_name_is_not(
    kind: types.MemberKind.ValueType, own_kind: types.MemberKind.ValueType, id: str, own_id: str
) -> None:
    beat = events_pb2.Heartbeat(id=id, member=cluster_pb2.Member(id=id, kind=kind))
    own = f"deepflow.heartbeat.{kind_word(own_kind)}.{own_id}"
    assert is_by_its_speaker(own, beat) == ((kind, id) == (own_kind, own_id))
    events = events_pb2.KvEvents(task_executor_id=id)
    assert is_by_its_speaker(f"deepflow.kv.{own_id}", events) == (id == own_id)


@pytest.mark.parametrize(
    "beat",
    [
        events_pb2.Heartbeat(id="te-1", member=cluster_pb2.Member(id="te-1")),
        events_pb2.Heartbeat(id="te-1", member=cluster_pb2.Member(id="te-2")),
        events_pb2.Heartbeat(member=cluster_pb2.Member(id="te-1")),
        events_pb2.Heartbeat(),
        events_pb2.KvEvents(),
    ],
)
def test_what_names_nobody_or_two_is_not_heard(beat: Message) -> None:
    assert not is_by_its_speaker("deepflow.heartbeat.task_executor.te-1", beat)


def test_a_heartbeat_may_be_about_load_alone() -> None:
    beat = events_pb2.Heartbeat(id="te-1", load=events_pb2.Load(running=1))
    assert is_by_its_speaker("deepflow.heartbeat.task_executor.te-1", beat)


def test_what_one_speaker_only_may_say_needs_no_name() -> None:
    assert is_by_its_speaker("deepflow.view", events_pb2.ViewChanged())
