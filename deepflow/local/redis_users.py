"""Who may do what in Redis: the one list of rights, for the local stack and for compose/.

The kv_store reaches its own keys with the commands that its Lua uses. `operator` is for people:
backups, a look inside. Nobody else gets in: the default user is off. Only rules of Redis 6.2.
"""

import base64
import hashlib

KV_STORE = "kv-store"
OPERATOR = "operator"

_KEYS = ("deepflow:records:*", "deepflow:disposable:*")
# Lua comes as a script that is loaded, and is run by its hash.
_SCRIPTING = ("evalsha", "script|load")
_READING = ("get", "info", "ping")
# What the scripts call; Redis asks for the caller's right to each of them, too.
_IN_SCRIPTS = (
    *("del", "exists", "pexpire", "pttl", "scan", "set", "time"),
    *("incr", "incrby", "decrby"),
    *("hdel", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset"),
    *("zadd", "zcard", "zrange", "zrangebylex", "zrangebyscore", "zrem", "zscore"),
)
COMMANDS = (*_SCRIPTING, *_READING, *_IN_SCRIPTS)

_PERSON = b"deepflow-redis"


def kv_store_password(secret: str) -> str:
    """Made from the stack's secret, which is the operator's password and told to no service."""
    key = hashlib.sha512(secret.encode()).digest()
    digest = hashlib.blake2b(KV_STORE.encode(), key=key, person=_PERSON).digest()
    return base64.urlsafe_b64encode(digest[:24]).decode()


def kv_store_rights() -> str:
    keys = " ".join(f"~{pattern}" for pattern in _KEYS)
    return f"resetchannels {keys} " + " ".join(f"+{command}" for command in COMMANDS)


OPERATOR_RIGHTS = "~* &* +@all"


def users(secret: str) -> list[str]:
    """Lines of redis.conf; they hold hashes of the passwords only."""
    return [
        "user default off",
        f"user {KV_STORE} on #{_hash(kv_store_password(secret))} {kv_store_rights()}",
        f"user {OPERATOR} on #{_hash(secret)} {OPERATOR_RIGHTS}",
    ]


def _hash(password: str) -> str:
    """As Redis keeps it. The password is random: one fast hash is as good as a slow one."""
    return hashlib.sha256(password.encode()).hexdigest()
