"""The table of rights on NATS: whole, narrow, and the one that compose/ has, too."""

import fnmatch
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from deepflow.access.records import CHANGED_SUBJECT
from deepflow.local.nats_users import SERVICES, SUPERVISOR, authorization, password_of
from deepflow.membership import HEARTBEAT_SUBJECT, VIEW_SUBJECT, kind_word
from deepflow.v1 import types_pb2 as types
from services.job_executor.prompt_tree.listener import KV_SUBJECT

COMPOSE = Path(__file__).parents[3] / "compose"
KINDS = {kind_word(value) for value in types.MemberKind.values() if value}


def test_compose_has_the_same_users() -> None:
    """Where it differs: write what `authorization` gives into compose/nats/nats.conf."""
    passwords = {user: f"$NATS_{name.upper()}_PASSWORD" for name, user in SERVICES.items()}
    assert (COMPOSE / "nats" / "nats.conf").read_text().endswith(authorization(passwords))


def test_every_kind_of_member_has_a_user() -> None:
    assert set(SERVICES) == KINDS


def test_a_member_speaks_for_its_own_kind_only() -> None:
    for kind, user in SERVICES.items():
        beats = [subject for subject in user.publish if subject.startswith(HEARTBEAT_SUBJECT)]
        assert beats == [f"{HEARTBEAT_SUBJECT}.{kind}.*"]


def test_each_other_subject_has_one_kind_that_speaks() -> None:
    speakers = {
        subject: [kind for kind, user in SERVICES.items() if subject in user.publish]
        for subject in (VIEW_SUBJECT, CHANGED_SUBJECT, f"{KV_SUBJECT}.*")
    }
    assert speakers == {
        VIEW_SUBJECT: ["cluster_manager"],
        CHANGED_SUBJECT: ["kv_store"],
        f"{KV_SUBJECT}.*": ["task_executor"],
    }
    assert SUPERVISOR.publish == ()


def test_nobody_may_do_everything() -> None:
    for user in (*SERVICES.values(), SUPERVISOR):
        for pattern in (*user.publish, *user.subscribe):
            assert not fnmatch.fnmatch("$SYS.REQ.SERVER.PING", pattern)
            assert pattern.startswith("deepflow.") and pattern != "deepflow.>"


@given(st.text(), st.text())
def test_passwords_are_of_one_stack_and_one_user(secret: str, other: str) -> None:
    users = (*SERVICES.values(), SUPERVISOR)
    made = [password_of(user, secret) for user in users]
    assert len(set(made)) == len(users)
    assert made == [password_of(user, secret) for user in users]
    if other != secret:
        assert not set(made) & {password_of(user, other) for user in users}
