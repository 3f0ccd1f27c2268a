"""The kv_store's rights in Redis: what its Lua calls, nothing else, and the same in compose/."""

import re
from pathlib import Path

from deepflow.local.redis_users import (
    COMMANDS,
    KV_STORE,
    OPERATOR_RIGHTS,
    kv_store_password,
    kv_store_rights,
    users,
)

ROOT = Path(__file__).parents[3]
# What the connection and the link itself send.
SENT = {"evalsha", "script|load", "get", "info", "ping"}


def test_the_rights_are_what_the_scripts_call() -> None:
    sources = (file.read_text() for file in (ROOT / "services" / "kv_store").rglob("*.py"))
    called = {
        name.lower() for text in sources for name in re.findall(r"redis\.p?call\('(\w+)'", text)
    }
    assert called | SENT == set(COMMANDS)
    assert len(COMMANDS) == len(set(COMMANDS))


def test_nobody_gets_in_by_default_and_no_password_is_readable() -> None:
    lines = users("secret")
    assert lines[0] == "user default off"
    assert len(lines) == 3
    assert "nopass" not in " ".join(lines)
    assert not [line for line in lines if ">" in line]
    assert kv_store_password("secret") != kv_store_password("other")


def test_compose_gives_the_same_rights() -> None:
    """Where it differs: write what `kv_store_rights` gives into compose/redis/start."""
    text = (ROOT / "compose" / "redis" / "start").read_text()
    assert re.findall(r"^user (.+)$", text, re.MULTILINE) == [
        "default off",
        f"{KV_STORE} on >$REDIS_KV_STORE_PASSWORD {kv_store_rights()}",
        f"operator on >$REDIS_OPERATOR_PASSWORD {OPERATOR_RIGHTS}",
    ]
