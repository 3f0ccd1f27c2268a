"""The door: every request passes it, and what it may do is decided here."""

import ipaddress

from deepflow.access.secrets import KEY_CHARACTERS_MAX
from deepflow.errors import PermissionDenied, Unauthenticated, Unavailable
from services.gateway.auth.caller import ANYBODY, Caller
from services.gateway.auth.follower import Follower
from services.gateway.auth.key_ring import KeyRing
from services.gateway.auth.sites import is_strangers
from services.gateway.http.exchange import Exchange

# Asked by machines that hold no key; they tell nothing about anybody's work.
OPEN_ROUTES = ("/health", "/ready")
# Of all tenants together, hence for whoever runs the platform.
ADMIN_ROUTES = ("/metrics",)
ADMIN_PREFIX = "/v1/admin/"

RETRY_AFTER_SECONDS = 1.0
CREATE_A_KEY = "deepflow keys create --admin"


class Gate:
    def __init__(
        self, ring: KeyRing, follower: Follower, *, is_loopback: bool, asks_nobody: bool
    ) -> None:
        self._ring = ring
        self._follower = follower
        self._is_loopback = is_loopback
        self._asks_nobody = asks_nobody

    async def admit(self, exchange: Exchange) -> Caller:
        """Raises Unauthenticated, PermissionDenied, or Unavailable where nobody can tell."""
        path = exchange.path
        if path in OPEN_ROUTES:
            return ANYBODY
        caller = await self._identify(exchange.bearer())
        if path.startswith(ADMIN_PREFIX) and not caller.has_key:
            raise Unauthenticated(
                f"{path[:64]} needs an admin key, also where nothing else needs one; make one"
                f" with '{CREATE_A_KEY}'"
            )
        is_for_admins = path in ADMIN_ROUTES or path.startswith(ADMIN_PREFIX)
        if is_for_admins and caller.has_key and not caller.is_admin:
            raise PermissionDenied(f"{path[:64]} needs an admin key", reason="admin_key_needed")
        if not caller.has_key and is_strangers(*exchange.site):
            raise PermissionDenied(
                "without an API key this gateway answers this machine only, and neither pages of"
                " other sites nor other names that point here; ask at 127.0.0.1, or make a key"
                f" with '{CREATE_A_KEY}'",
                reason="foreign_site",
            )
        return caller

    async def _identify(self, key: str) -> Caller:
        if len(key) > KEY_CHARACTERS_MAX:
            raise Unauthenticated("the API key is too long to be one of ours")
        if key and (caller := self._ring.find(key)):
            return caller
        if self._asks_nobody or self._is_open:
            return ANYBODY
        if not self._ring.is_known:
            raise _unavailable("this gateway could not read the API keys yet")
        if not key:
            raise Unauthenticated(
                "an API key is needed: send the header 'Authorization: Bearer df-…'"
            )
        return await self._look_again(key)

    async def _look_again(self, key: str) -> Caller:
        await self._follower.look_again()
        if caller := self._ring.find(key):
            return caller
        if not self._follower.is_current:
            raise _unavailable("API keys cannot be checked right now")
        raise Unauthenticated("this API key is not known, or was revoked")

    @property
    def _is_open(self) -> bool:
        """As long as nobody ever made a key, whoever reaches the loopback may ask."""
        return self._is_loopback and self._ring.is_known and not self._ring.has_keys


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unavailable(message: str) -> Unavailable:
    return Unavailable(
        f"{message}; try again in a moment",
        reason="keys_unavailable",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
