"""Which names are allowed, and where each thing lies in Redis.

deepflow:records:generation          marks this life of the record space
deepflow:records:index               sorted set of all record keys
deepflow:records:record:<key>        hash: value, version
deepflow:records:lease:<name>        hash that expires: holder, token
deepflow:records:lease-token:<name>  the highest fencing token given out; never falls
"""

import re

from deepflow.errors import InvalidRequest

SPACE = "deepflow:records:"
GENERATION = f"{SPACE}generation"
INDEX = f"{SPACE}index"
RECORD = f"{SPACE}record:"
LEASE = f"{SPACE}lease:"
LEASE_TOKEN = f"{SPACE}lease-token:"

KEY_LENGTH_MAX = 256
_ALLOWED = re.compile(r"[A-Za-z0-9._:/@+=-]+")
_ALLOWED_WORDS = "letters, digits and . _ : / @ + = -"


def check_key(key: str, param: str = "key") -> str:
    if not key:
        raise InvalidRequest(f"{param} is empty; a name is needed", param=param)
    return check_prefix(key, param)


def check_prefix(prefix: str, param: str = "prefix") -> str:
    """A key's beginning; the empty one is every key's."""
    if len(prefix) > KEY_LENGTH_MAX:
        raise InvalidRequest(
            f"{param} has {len(prefix)} characters; at most {KEY_LENGTH_MAX} are allowed",
            param=param,
        )
    if prefix and not _ALLOWED.fullmatch(prefix):
        raise InvalidRequest(f"{param} {prefix!r} may only hold {_ALLOWED_WORDS}", param=param)
    return prefix


def lex_range(prefix: str) -> tuple[str, bytes]:
    """ZRANGEBYLEX bounds of all keys that begin with `prefix`; 0xff sorts after any key."""
    return (f"[{prefix}", b"[" + prefix.encode() + b"\xff") if prefix else ("-", b"+")
