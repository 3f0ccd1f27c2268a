"""`python -m services.kv_store.initialise`: marks an empty Redis as a new record space, once.

Where no supervisor remembers that a Redis is new, a person says so. A kv_store that found an empty
Redis by itself could not tell the first day from the day on which everything was lost.
"""

import asyncio
import sys

from deepflow.config import ConfigError, load
from deepflow.errors import Unavailable
from services.kv_store.config import KvStoreConfig
from services.kv_store.records.generation import Generation
from services.kv_store.redis_link import RedisLink

EXIT_REFUSED = 1
EXIT_BAD_CONFIG = 2


async def initialise(config: KvStoreConfig) -> str:
    """The generation that is there now. Raises Unavailable where Redis is not new, or away."""
    redis = RedisLink(config)
    try:
        return await Generation(redis, may_initialise=True).check()
    finally:
        await redis.close()


def main() -> int:
    try:
        generation = asyncio.run(initialise(load(KvStoreConfig, "kv_store")))
    except ConfigError as error:
        sys.stderr.write(f"kv_store: {error}\n")
        return EXIT_BAD_CONFIG
    except Unavailable as error:
        sys.stderr.write(f"kv_store: {error.message}\n")
        return EXIT_REFUSED
    sys.stdout.write(f"records of generation {generation}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
