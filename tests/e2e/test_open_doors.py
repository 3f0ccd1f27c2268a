"""Who listens in a running stack, and what answers without credentials: exactly what is listed.

`open_doors.txt` holds the list. A door that is new, or gone, fails here; whoever adds one writes
down why it is open.
"""

import json
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from deepflow.local.data_dir import DataDir
from deepflow.local.nats_users import SERVICES, password_of
from deepflow.local.redis_users import kv_store_password
from tests.e2e.doors import rpc_methods, web
from tests.e2e.doors.listeners import LOOPBACKS, Listener, listeners
from tests.stack import Stack, running_stack, wait_until

LIST = Path(__file__).parent / "open_doors.txt"
PROTO = Path(__file__).parents[2] / "proto" / "deepflow" / "v1"
WRONG_KEY = "df-" + "A" * 43


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("doors") / "data"
    with running_stack(folder, "--device", "emulated:zero", "--gateways", "2") as running:
        yield running


@pytest.fixture(scope="module")
def routes() -> web.Routes:
    return web.gateway_routes()


@pytest.fixture(scope="module")
def found(stack: Stack) -> list[Listener]:
    stack.wait_until_all_are_members()
    return listeners(stack)


@pytest.fixture(scope="module")
def open_before_the_first_key(stack: Stack, routes: web.Routes) -> web.Answers:
    return web.knock(stack.url, [*routes, *web.COMMON], {})


FOREIGN = ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"})


@pytest.fixture(scope="module")
def foreign_before_the_first_key(stack: Stack, routes: web.Routes) -> list[web.Answers]:
    """What pages of other sites get through a browser on this machine."""
    return [web.knock(stack.url, [*routes, *web.COMMON], headers) for headers in FOREIGN]


@pytest.fixture(scope="module")
def keys(
    stack: Stack, open_before_the_first_key: object, foreign_before_the_first_key: object
) -> dict[str, str]:
    """From now on there are keys, and both gateways know it."""
    made = {
        name: json.loads(stack.cli("keys", "create", "--json", *options).stdout)["key"]
        for name, options in {"admin": ("--admin",), "plain": ()}.items()
    }
    for url in stack.status()["gateways"]:
        for key in made.values():
            wait_until(partial(_is_known, url, key), f"{url} knows the keys")
    return made


def _is_known(url: str, key: str) -> bool:
    ask = partial(web.knock, url, ["/v1/models"], methods=["GET"])
    return [*ask(web.bearer(key)).values(), *ask({}).values()] == [200, 401]


def _is_open(url: str, path: str, key: str) -> bool:
    return [*web.knock(url, [path], web.bearer(key), ["GET"]).values()] == [200]


def listed() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [" ".join(line.split()) for line in lines if line]


def test_what_is_open_is_what_is_listed(
    stack: Stack,
    found: list[Listener],
    open_before_the_first_key: web.Answers,
    keys: dict[str, str],
    routes: web.Routes,
) -> None:
    doors = {listener.line for listener in found}
    doors |= {
        f"before-keys gateway {it}" for it in web.open_ones(open_before_the_first_key, routes)
    }
    for url in stack.status()["gateways"]:
        answers = web.knock(url, [*routes, *web.COMMON], {})
        doors |= {f"http gateway {it}" for it in web.open_ones(answers, routes)}
    for listener in found:
        if listener.role == "health":
            url = f"http://127.0.0.1:{listener.port}"
            answers = web.knock(url, [*routes, *web.COMMON], {})
            doors |= {f"http {listener.service} {it}" for it in web.open_ones(answers)}
    assert not (new := sorted(doors - set(listed()))), "not on the list:\n" + "\n".join(new)
    assert not (gone := sorted(set(listed()) - doors)), "there no more:\n" + "\n".join(gone)


def test_the_list_says_of_every_door_why_it_is_open() -> None:
    lines = [line for line in LIST.read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.search(r"\S +# \w+", line)] == []
    assert len(set(listed())) == len(listed())


def test_every_port_is_bound_to_the_loopback(found: list[Listener]) -> None:
    assert len(found) > 10
    assert {it.address for it in found if not it.path} <= set(LOOPBACKS)


def test_without_a_key_there_is_401_and_nothing_else(
    stack: Stack, keys: dict[str, str], routes: web.Routes
) -> None:
    probes = {"/health", "/ready"}
    shut = [path for path in (*routes, *web.COMMON) if path not in probes]
    strangers: tuple[dict[str, str], ...] = (
        {},
        web.bearer(WRONG_KEY),
        web.bearer(keys["plain"][:-1]),
    )
    for headers in strangers:
        answers = web.knock(stack.url, shut, headers)
        assert {door: it for door, it in answers.items() if it != 401} == {}


@pytest.mark.parametrize(
    "scheme", ["Basic {}", "bearer-token {}", "Bearer {}, Bearer x", "Bearer Bearer {}"]
)
def test_a_key_in_another_guise_is_no_key(stack: Stack, keys: dict[str, str], scheme: str) -> None:
    headers = {"authorization": scheme.format(keys["plain"])}
    path = f"/v1/models?api_key={keys['plain']}"
    assert set(web.knock(stack.url, ["/v1/models", path], headers).values()) == {401}


def test_admin_routes_are_shut_for_plain_keys(
    stack: Stack, keys: dict[str, str], routes: web.Routes
) -> None:
    admin = {path: methods for path, methods in routes.items() if "/admin/" in path}
    assert len(admin) >= 4
    admin["/metrics"] = ("GET",)
    for path, methods in admin.items():
        answers = web.knock(stack.url, [path], web.bearer(keys["plain"]), methods)
        assert set(answers.values()) == {403}, path
        if "GET" in methods and not path.endswith("/x"):
            # 503 where the kv_store is held up for a moment.
            wait_until(partial(_is_open, stack.url, path, keys["admin"]), f"{path} opens")


def test_before_the_first_key_admin_routes_are_shut(
    open_before_the_first_key: web.Answers,
) -> None:
    admin = {
        door: status
        for door, status in open_before_the_first_key.items()
        if door[1].startswith("/v1/admin/")
    }
    assert set(admin.values()) == {401}


def test_before_the_first_key_pages_of_other_sites_find_probes_only(
    foreign_before_the_first_key: list[web.Answers], routes: web.Routes
) -> None:
    for answers in foreign_before_the_first_key:
        assert web.open_ones(answers, routes) == {"GET /health", "GET /ready"}


def test_with_a_key_any_site_may_ask(stack: Stack, keys: dict[str, str]) -> None:
    for headers in FOREIGN:
        headers = headers | web.bearer(keys["plain"])
        assert set(web.knock(stack.url, ["/v1/models"], headers, ["GET"]).values()) == {200}


def test_every_method_of_every_grpc_port_asks_for_the_token(
    stack: Stack, found: list[Listener]
) -> None:
    methods = rpc_methods.methods()
    described = re.findall(
        r"^ *rpc (\w+)\(", "".join(it.read_text() for it in PROTO.glob("*.proto")), re.MULTILINE
    )
    assert sorted(method.name for method in methods) == sorted(described)
    token = DataDir(stack.data_dir).read_secrets().cluster_token
    ports = [it for it in found if it.role == "grpc"]
    assert {it.service for it in ports} == set(SERVICES) - {"gateway"}
    for it in ports:
        with grpc.insecure_channel(f"127.0.0.1:{it.port}") as channel:
            for wrong in (None, "", "wrong", token[:-1], token + "x"):
                answers = {
                    rpc_methods.path_of(method): rpc_methods.knock(channel, method, wrong)
                    for method in methods
                }
                answers["unknown"] = rpc_methods.call(channel, rpc_methods.NO_SUCH_METHOD, wrong)
                opened = {k for k, code in answers.items() if code != _REFUSED}
                assert not opened, f"{it.service} answers {opened} to the token {wrong!r}"
            known = rpc_methods.call(channel, rpc_methods.NO_SUCH_METHOD, token)
            assert known == grpc.StatusCode.UNIMPLEMENTED


_REFUSED = grpc.StatusCode.UNAUTHENTICATED


def test_secrets_lie_in_private_files_only(stack: Stack, found: list[Listener]) -> None:
    (socket,) = [it.path for it in found if it.path]
    assert stat.S_IMODE(Path(socket).stat().st_mode) == 0o600
    for folder in ("logs", "nats", "redis"):
        assert stat.S_IMODE((stack.data_dir / folder).stat().st_mode) == 0o700, folder
    for name in ("secrets.json", "ports.json", "nats/nats.conf", "redis/redis.conf"):
        assert stat.S_IMODE((stack.data_dir / name).stat().st_mode) == 0o600, name


def test_each_process_is_told_its_own_secrets_only(stack: Stack) -> None:
    secrets = DataDir(stack.data_dir).read_secrets()
    of_nats = {name: password_of(it, secrets.nats_password) for name, it in SERVICES.items()}
    of_redis = kv_store_password(secrets.redis_password)
    everything = {*of_nats.values(), of_redis, secrets.nats_password, secrets.redis_password}
    services = {int(row["pid"]): str(row["service"]) for row in stack.processes()}
    for process in stack.family():
        words = " ".join(process.cmdline())
        assert not [it for it in (*everything, secrets.cluster_token) if it in words]
        service = services.get(process.pid, "")
        own = {of_nats[service]} if service in of_nats else set()
        own |= {of_redis} if service == "kv_store" else set()
        told = set(process.environ().values())
        assert told & everything == own, service
        # Not the engine, nor what it starts: they read what strangers wrote.
        assert (secrets.cluster_token in told) == (service in of_nats), process.cmdline()


def test_nobody_is_refused_in_daily_work(stack: Stack) -> None:
    """The rights are enough: no service ran into a door of its own."""
    for log in (stack.data_dir / "logs").glob("*.log"):
        words = log.read_text(errors="replace").lower()
        assert "violation" not in words and "noperm" not in words, log.name
