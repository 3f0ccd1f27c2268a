"""Who speaks on NATS: the subject says it, because NATS guards subjects and not what is in them."""

from google.protobuf.message import Message

from deepflow.v1 import events_pb2
from deepflow.v1 import types_pb2 as types


def kind_word(kind: types.MemberKind.ValueType) -> str:
    """MEMBER_KIND_JOB_EXECUTOR -> "job_executor"."""
    return types.MemberKind.Name(kind).removeprefix("MEMBER_KIND_").lower()


def is_by_its_speaker(subject: str, event: Message) -> bool:
    """Whether a message names the member under whose subject it came, and no other one."""
    *_, kind, id = ("", *subject.split("."))
    if isinstance(event, events_pb2.KvEvents):
        return event.task_executor_id == id
    if isinstance(event, events_pb2.Heartbeat):
        member = event.member
        return event.id == id and (
            not event.HasField("member") or (member.id, kind_word(member.kind)) == (id, kind)
        )
    return True  # subjects of one speaker only
