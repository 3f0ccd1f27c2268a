"""NATS and Redis of a running stack: who gets in, and that each does what is its own only."""

import itertools
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from nats.aio.client import Client
from nats.aio.msg import Msg
from redis.backoff import NoBackoff
from redis.retry import Retry

from deepflow.local.data_dir import DataDir, Secrets
from deepflow.local.nats_users import SERVICES, SUPERVISOR, NatsUser, password_of
from deepflow.local.redis_users import COMMANDS, KV_STORE, OPERATOR, kv_store_password
from tests.e2e.doors.listeners import port_of
from tests.servers import until
from tests.stack import Stack, running_stack

USERS = (*SERVICES.values(), SUPERVISOR)
SUBJECTS = sorted({pattern for user in USERS for pattern in (*user.publish, *user.subscribe)})
NOBODYS = (">", "deepflow.>", "$SYS.>", "_INBOX.>", "deepflow.commands", "elsewhere")
# Of a client or a server that a busy machine holds up.
PATIENCE_SECONDS = 30
# No message of ours: a service that hears it logs that it cannot be read.
NOISE = b"\xff"
REFUSED = b"-ERR 'Authorization Violation'"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("inner") / "data"
    with running_stack(folder, "--device", "emulated:zero") as running:
        yield running


@pytest.fixture(scope="module")
def secrets(stack: Stack) -> Secrets:
    return DataDir(stack.data_dir).read_secrets()


@pytest.fixture(scope="module")
def nats_url(stack: Stack) -> str:
    return f"nats://127.0.0.1:{port_of(stack, 'nats')}"


@dataclass
class Caller:
    """One user's connection, and what NATS told it."""

    user: NatsUser
    client: Client
    errors: list[str] = field(default_factory=list)

    async def settle(self) -> None:
        """All that it did was answered: a first ping may overtake what the client holds back."""
        for _ in range(2):
            await self.client.flush(PATIENCE_SECONDS)

    async def is_refused(self) -> bool:
        """Whether the last thing it did is; NATS answers in order."""
        await self.settle()
        refused = any("permissions violation" in error.lower() for error in self.errors)
        self.errors.clear()
        return refused


@pytest.fixture
async def callers(nats_url: str, secrets: Secrets) -> AsyncIterator[dict[str, Caller]]:
    made = {}
    for user in USERS:
        caller = made[user.name] = Caller(user, Client())

        async def note(error: Exception, caller: Caller = caller) -> None:
            caller.errors.append(str(error))

        await caller.client.connect(
            nats_url,
            user=user.name,
            password=password_of(user, secrets.nats_password),
            error_cb=note,
            connect_timeout=PATIENCE_SECONDS,
            allow_reconnect=False,
        )
    yield made
    for caller in made.values():
        await caller.client.close()


def covers(pattern: str, subject: str) -> bool:
    """Whether all that `subject` stands for is in `pattern`; both may have wildcards."""
    for allowed, asked in itertools.zip_longest(pattern.split("."), subject.split(".")):
        if allowed == ">":
            return asked is not None
        if asked == ">" or (asked != allowed and (allowed != "*" or asked is None)):
            return False
    return True


def may(patterns: tuple[str, ...], subject: str) -> bool:
    return any(covers(pattern, subject) for pattern in patterns)


def knock(url: str, **credentials: str) -> bytes:
    """What NATS answers to a CONNECT with these; b"PONG" where it lets them in."""
    host, _, port = url.rpartition("/")[2].partition(":")
    address = (host, int(port))
    with (
        socket.create_connection(address, timeout=PATIENCE_SECONDS) as it,
        it.makefile("rb") as lines,
    ):
        assert lines.readline().startswith(b"INFO ")
        it.sendall(
            b"CONNECT " + json.dumps({"verbose": False, **credentials}).encode() + b"\r\nPING\r\n"
        )
        return lines.readline().strip()


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"user": "gateway"},
        {"user": "gateway", "pass": "wrong"},
        {"user": "nobody", "pass": "wrong"},
        {"user": "deepflow", "pass": ""},
        {"auth_token": "wrong"},
    ],
    ids=str,
)
def test_nats_lets_no_stranger_in(nats_url: str, credentials: dict[str, str]) -> None:
    assert knock(nats_url, **credentials) == REFUSED


def test_nats_knows_each_user_by_its_own_password_only(nats_url: str, secrets: Secrets) -> None:
    passwords = {password_of(user, secrets.nats_password) for user in USERS}
    for user in USERS:
        own = password_of(user, secrets.nats_password)
        assert knock(nats_url, **{"user": user.name, "pass": own}) == b"PONG"
        for other in {*passwords, secrets.nats_password, secrets.cluster_token} - {own}:
            assert knock(nats_url, **{"user": user.name, "pass": other}) == REFUSED


async def test_each_hears_its_own_subjects_only(callers: dict[str, Caller]) -> None:
    for caller in callers.values():
        for subject in (*SUBJECTS, *NOBODYS):
            await caller.client.subscribe(subject)
            allowed = may(caller.user.subscribe, subject)
            assert await caller.is_refused() != allowed, f"{caller.user.name} hears {subject}"


async def test_each_says_its_own_subjects_only(callers: dict[str, Caller]) -> None:
    for caller in callers.values():
        for pattern in (*SUBJECTS, *NOBODYS):
            subject = pattern.replace("*", "x").replace(">", "x.y")
            await caller.client.publish(subject, NOISE)
            allowed = may(caller.user.publish, subject)
            assert await caller.is_refused() != allowed, f"{caller.user.name} says {subject}"


async def test_what_is_said_arrives_and_nothing_else_does(callers: dict[str, Caller]) -> None:
    heard: set[tuple[str, str, bytes]] = set()
    for caller in callers.values():

        async def note(message: Msg, name: str = caller.user.name) -> None:
            heard.add((name, message.subject, message.data))

        for pattern in caller.user.subscribe:
            await caller.client.subscribe(pattern, cb=note)
        await caller.settle()
    expected = set()
    for speaker in callers.values():
        said = f"said by {speaker.user.name}".encode()
        for pattern in SUBJECTS:
            subject = pattern.replace("*", "test").replace(">", "test.test")
            await speaker.client.publish(subject, said)
            if may(speaker.user.publish, subject):
                expected |= {
                    (user.name, subject, said) for user in USERS if may(user.subscribe, subject)
                }
        await speaker.settle()
    assert {listener for listener, _, _ in expected} == {user.name for user in USERS}
    await until(lambda: expected <= heard, what="everything that was said")
    for caller in callers.values():
        await caller.settle()
    assert {it for it in heard if it[2].startswith(b"said by")} == expected


def as_user(stack: Stack, user: str | None, password: str | None) -> redis.Redis:
    return redis.Redis(
        port=port_of(stack, "redis"),
        username=user,
        password=password,
        protocol=2,
        socket_timeout=PATIENCE_SECONDS,
        retry=Retry(NoBackoff(), 0),  # a refusal counts as a failed connection there
    )


@pytest.fixture(scope="module")
def operator(stack: Stack, secrets: Secrets) -> Iterator[redis.Redis]:
    with as_user(stack, OPERATOR, secrets.redis_password) as connection:
        yield connection


@pytest.fixture
def kv_store(stack: Stack, secrets: Secrets) -> Iterator[redis.Redis]:
    with as_user(stack, KV_STORE, kv_store_password(secrets.redis_password)) as connection:
        yield connection


def test_redis_lets_no_stranger_in(stack: Stack, secrets: Secrets) -> None:
    ours = kv_store_password(secrets.redis_password)
    for user, password in (
        (None, None),
        (None, "wrong"),
        (None, secrets.redis_password),
        (None, ours),
        ("default", secrets.redis_password),
        (KV_STORE, "wrong"),
        (KV_STORE, ""),
        (KV_STORE, secrets.redis_password),
        (OPERATOR, ours),
        ("nobody", ours),
    ):
        with (
            as_user(stack, user, password) as connection,
            pytest.raises(redis.AuthenticationError),
        ):
            connection.ping()


def test_before_it_is_known_who_asks_redis_does_nothing(
    stack: Stack, operator: redis.Redis
) -> None:
    """Every command there is, but those that say who asks or that hang up."""
    with as_user(stack, None, None) as stranger:
        for name, arity in commands(operator).items():
            if name not in ("auth", "hello", "quit", "reset"):
                with pytest.raises(redis.AuthenticationError):
                    ask(stranger, name, arity)


def test_the_kv_store_has_no_other_command(operator: redis.Redis, kv_store: redis.Redis) -> None:
    known = commands(operator)
    others = set(known) - set(COMMANDS)
    assert {"flushall", "flushdb", "config", "keys", "eval", "acl", "shutdown"} < others
    for name in sorted(others - {"auth", "hello", "quit", "reset"}):
        with pytest.raises(redis.ResponseError, match="has no permissions"):
            ask(kv_store, name, known[name])


def test_the_kv_store_has_no_others_keys(kv_store: redis.Redis) -> None:
    assert kv_store.get("deepflow:records:generation")
    assert kv_store.get("deepflow:disposable:value:nothing") is None
    for key in ("x", "deepflow:", "deepflow:other:x", "DEEPFLOW:records:generation"):
        for command in (("GET", key), ("SET", key, "1"), ("DEL", key), ("HGETALL", key)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                kv_store.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "script",
    [
        "return redis.call('FLUSHALL')",
        "return redis.call('RENAME', 'deepflow:records:index', 'deepflow:records:x')",
        "return redis.call('KEYS', '*')",
        "return redis.call('SET', 'x', '1')",
    ],
)
def test_a_script_has_no_more_rights_than_its_caller(kv_store: redis.Redis, script: str) -> None:
    loaded = kv_store.script_load(script)
    with pytest.raises(redis.RedisError, match=r"(?i)can't run this command|can't access|NOPERM"):
        kv_store.evalsha(loaded, 0)


def commands(connection: redis.Redis) -> dict[str, int]:
    """Name -> number of words at least (a negative arity) or exactly."""
    answer: dict[str, Any] = connection.command()
    return {name.lower(): int(it["arity"]) for name, it in answer.items()}


def ask(connection: redis.Redis, name: str, arity: int) -> None:
    """With words that Redis finds enough, so that it looks at rights next."""
    connection.execute_command(name, *["1"] * (abs(arity) - 1))  # type: ignore[no-untyped-call]
