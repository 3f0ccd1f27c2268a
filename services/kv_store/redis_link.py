"""The connection to Redis, and the one place where its failures become ours."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeAlias, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from deepflow.errors import Unavailable
from services.kv_store.config import KvStoreConfig

Argument: TypeAlias = str | bytes | int
Reply: TypeAlias = list[Any]

RETRY_AFTER_SECONDS = 1.0


class RedisLink:
    """Runs scripts and reads; every wait is bounded and every failure is Unavailable.

    Nothing is retried here: a connection that Redis closed is replaced at its next use, and the
    callers know which of their calls they may repeat.
    """

    def __init__(self, config: KvStoreConfig) -> None:
        self._pool = BlockingConnectionPool.from_url(
            config.redis_url,
            password=config.redis_password or None,
            max_connections=config.redis_connections,
            timeout=config.redis_command_seconds,
            socket_connect_timeout=config.redis_connect_seconds,
            socket_timeout=config.redis_command_seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis(connection_pool=self._pool)
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        """One Lua script: Redis runs it as a whole or not at all."""
        if script not in self._scripts:
            self._scripts[script] = self._redis.register_script(script)
        async with translated():
            return cast(Reply, await self._scripts[script](keys=keys, args=arguments))

    async def get(self, key: str) -> bytes | None:
        async with translated():
            return cast(bytes | None, await cast(Awaitable[Any], self._redis.get(key)))

    async def info(self, section: str) -> dict[str, Any]:
        async with translated():
            return cast(dict[str, Any], await cast(Awaitable[Any], self._redis.info(section)))

    async def close(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()


@contextlib.asynccontextmanager
async def translated() -> AsyncIterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise unavailable(f"Redis refuses the kv_store's password: {error}") from error
    except NoPermissionError as error:
        raise unavailable(f"Redis refuses the kv_store's user a right it needs: {error}") from error
    except (RedisError, OSError, TimeoutError) as error:
        raise unavailable(f"Redis is not answering: {error or type(error).__name__}") from error


def unavailable(message: str) -> Unavailable:
    return Unavailable(message, retry_after_seconds=RETRY_AFTER_SECONDS)
