"""Who may say and hear what on NATS: the one table, for the local stack and for compose/.

A member publishes under its own kind only. Its id is not part of its rights: members come and go
while NATS runs, and NATS reads its users when it starts. What is not listed is refused.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

_PERSON = b"deepflow-nats"
# Nothing may be said: NATS takes an absent list for "everything".
_NOTHING = '{deny: ">"}'


@dataclass(frozen=True, slots=True)
class NatsUser:
    """Patterns of subjects; `*` stands for one word, `>` for all that follow."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


SERVICES: Mapping[str, NatsUser] = {
    "gateway": NatsUser(
        "gateway",
        publish=("deepflow.heartbeat.gateway.*",),
        subscribe=("deepflow.view", "deepflow.access"),
    ),
    "job_executor": NatsUser(
        "job-executor",
        publish=("deepflow.heartbeat.job_executor.*",),
        subscribe=("deepflow.view", "deepflow.heartbeat.task_executor.*", "deepflow.kv.*"),
    ),
    "task_executor": NatsUser(
        "task-executor",
        publish=("deepflow.heartbeat.task_executor.*", "deepflow.kv.*"),
        subscribe=("deepflow.view",),
    ),
    "cluster_manager": NatsUser(
        "cluster-manager",
        publish=("deepflow.view", "deepflow.heartbeat.cluster_manager.*"),
        subscribe=("deepflow.heartbeat.*.*",),
    ),
    "kv_store": NatsUser(
        "kv-store",
        publish=("deepflow.heartbeat.kv_store.*", "deepflow.access"),
        subscribe=("deepflow.view",),
    ),
}
# Listens for `deepflow status` and for the health ports of what it started.
SUPERVISOR = NatsUser("supervisor", publish=(), subscribe=("deepflow.heartbeat.>",))


def password_of(user: NatsUser, secret: str) -> str:
    """Made from the stack's secret, which no service is told: none can make another's."""
    digest = hashlib.blake2b(
        user.name.encode(), key=hashlib.sha512(secret.encode()).digest(), person=_PERSON
    ).digest()
    return base64.urlsafe_b64encode(digest[:24]).decode()


def authorization(passwords: Mapping[NatsUser, str]) -> str:
    """The part of NATS' configuration that names the users; a password is written as it is."""
    users = "".join(_entry(user, password) for user, password in passwords.items())
    return f"authorization {{\n  timeout: 2\n  users: [\n{users}  ]\n}}\n"


def _entry(user: NatsUser, password: str) -> str:
    return (
        "    {\n"
        f"      user: {user.name}, password: {password}\n"
        "      permissions: {\n"
        f"        publish: {json.dumps(user.publish) if user.publish else _NOTHING}\n"
        f"        subscribe: {json.dumps(user.subscribe) if user.subscribe else _NOTHING}\n"
        "      }\n"
        "    }\n"
    )
