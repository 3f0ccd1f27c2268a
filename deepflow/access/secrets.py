"""How keys look, and what is kept of them."""

import base64
import hashlib
import secrets

PREFIX = "df-"
KEY_BYTES = 32
KEY_CHARACTERS_MAX = 256

_PERSON = b"deepflow-key"
_CLUSTER_PERSON = b"deepflow-cluster"


def new_key() -> str:
    """A key that nobody can guess; whoever gets it sees it once."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(key: str) -> bytes:
    """All that is kept. A key is 256 random bits, so one fast hash is as good as a slow one."""
    return hashlib.blake2b(key.encode(), digest_size=32, person=_PERSON).digest()


def cluster_key(cluster_token: str) -> str:
    """The key of whoever runs the cluster, made from its token: it needs no record.

    With it `deepflow up` asks its first question, and `deepflow chat` the stack that runs here.
    """
    digest = hashlib.blake2b(cluster_token.encode(), digest_size=32, person=_CLUSTER_PERSON)
    return PREFIX + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
